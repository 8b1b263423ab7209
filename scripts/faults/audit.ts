import type { Db } from '../../shared/db.ts'

/** Everything a worker writes about a session. */
const tables = ['wa_sessions', 'wa_session_history', 'messages', 'outbox', 'chats', 'events']

/**
 * Notes every write with the name its connection goes by, in the order in which the database let them through. A write that is rolled
 * back leaves no note.
 */
export async function watchWrites(sql: Db): Promise<void> {
  await sql`
    create table faults_writes (
      id bigint generated always as identity primary key,
      at timestamptz not null default clock_timestamp(),
      writer text not null default current_setting('application_name'),
      session_id uuid not null,
      what text not null,
      fence bigint)`
  await sql`
    create function faults_note() returns trigger language plpgsql as $$
    declare subject uuid;
    begin
      if tg_table_name = 'wa_sessions' then
        insert into faults_writes (session_id, what, fence)
        values (new.id, case when tg_op = 'UPDATE' and new.fence > old.fence then 'take' else tg_table_name end, new.fence);
      else
        subject := case when tg_op = 'DELETE' then old.session_id else new.session_id end;
        if subject is not null then
          insert into faults_writes (session_id, what) values (subject, tg_table_name);
        end if;
      end if;
      return null;
    end $$`
  for (const table of tables) {
    const when = table === 'wa_sessions' ? 'insert or update' : 'insert or update or delete'
    // The names are constants of this file.
    const statement = [
      `create trigger faults_note after ${when} on ${table} for each row execute function faults_note()`,
    ] as unknown as TemplateStringsArray
    await sql(statement)
  }
}

export interface Takeover {
  writer: string
  fence: number
  /** Milliseconds since 1970. */
  at: number
}

/** Changes of a session's owner, oldest first. */
export async function takeovers(sql: Db, sessionId: string): Promise<Takeover[]> {
  return sql<Takeover>`
    select writer, fence, (extract(epoch from at) * 1000)::float8 as at
    from faults_writes where session_id = ${sessionId} and what = 'take' order by id`
}

/** Writes by workers (their names begin with `worker`) that did not own the session at the time, as sentences. */
export async function staleWrites(sql: Db): Promise<string[]> {
  const rows = await sql<{ writer: string; what: string; owner: string; count: number }>`
    select w.writer, w.what, o.writer as owner, count(*)::int
    from faults_writes w
    cross join lateral (
      select t.writer from faults_writes t
      where t.session_id = w.session_id and t.what = 'take' and t.id <= w.id
      order by t.id desc limit 1) o
    where w.writer like 'worker%' and w.writer <> o.writer
    group by 1, 2, 3`
  return rows.map(
    ({ writer, what, owner, count }) =>
      `${writer} wrote ${count} × ${what} while ${owner} owned it`,
  )
}
