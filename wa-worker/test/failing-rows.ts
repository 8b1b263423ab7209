import pg from 'pg'

/** The next write of such a row fails, once; the code says whether that is an outage. */
export async function failOnce(
  url: string,
  table: string,
  when: string,
  code: string,
): Promise<void> {
  await script(
    url,
    `drop trigger if exists fail_once on ${table};
     drop sequence if exists failures;
     create sequence failures;
     create or replace function fail_once() returns trigger language plpgsql as $$ begin
       if nextval('failures') = 1 then raise exception 'made to fail' using errcode = '${code}'; end if;
       return new;
     end $$;
     create trigger fail_once before insert or update on ${table} for each row when (${when}) execute function fail_once()`,
  )
}

/** Writes of such a row fail. */
export const failAlways = (url: string, table: string, when: string) =>
  script(
    url,
    `create function fail_always() returns trigger language plpgsql as
       $$ begin raise exception 'made to fail' using errcode = '23514'; end $$;
     create trigger fail_always before insert or update on ${table} for each row when (${when}) execute function fail_always()`,
  )

/** Statements that sql`` has no way to say. */
export async function script(url: string, text: string): Promise<void> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.query(text).finally(() => client.end())
}
