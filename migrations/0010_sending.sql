-- What a message consists of beyond its text (a place, a card, a poll), who is mentioned in it, and what it came with.
create table if not exists public.batches (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  created_by   uuid references public.profiles on delete set null,
  accepted     int not null,
  -- [{index, code, message}]: rows that were refused when the batch was handed in.
  rejected     jsonb not null default '[]',
  created_at   timestamptz not null default now(),
  cancelled_at timestamptz
);
alter table public.batches enable row level security;

alter table public.messages
  add column if not exists content  jsonb,
  add column if not exists mentions text[] not null default '{}',
  add column if not exists send_at  timestamptz,
  add column if not exists batch_id uuid references public.batches on delete set null,
  -- Times a person had it sent again. After a refusal it travels under a new id: WhatsApp knows the old one as refused.
  add column if not exists retries  smallint not null default 0,
  -- Why it was sent to somebody who had opted out.
  add column if not exists opt_out_override text;
create index if not exists messages_batch on public.messages (batch_id) where batch_id is not null;

create table if not exists public.message_reactions (
  message_id   uuid not null references public.messages on delete cascade,
  -- Who reacted; 'me' for the session's own account, whichever of its addresses WhatsApp uses.
  wa_id        text not null,
  workspace_id uuid not null references public.workspaces on delete cascade,
  emoji        text not null,
  at           timestamptz not null default now(),
  primary key (message_id, wa_id)
);
alter table public.message_reactions enable row level security;

alter table public.chats
  -- Where WhatsApp says the number really lives, when that differs from what was dialled (Brazil, Mexico).
  add column if not exists canonical_wa_id text,
  add column if not exists last_inbound_at timestamptz,
  -- Somebody wrote to them before, here or on the phone.
  add column if not exists contacted_at    timestamptz;
create index if not exists chats_canonical on public.chats (session_id, canonical_wa_id) where canonical_wa_id is not null;
alter table public.contacts
  add column if not exists opted_out_at timestamptz;

-- The outbox. z: scheduled, not yet due. q: waits for its turn. s: claimed; what happened to it must be found out before it is sent again.
alter table public.outbox drop constraint if exists outbox_state_check;
alter table public.outbox add constraint outbox_state_check check (state in ('z', 'q', 's'));
alter table public.outbox
  drop column if exists retry_at,
  add column if not exists send_at     timestamptz,
  -- Claims during which the page broke down: a message that breaks it twice is given up.
  add column if not exists crashes     smallint not null default 0,
  -- Times its outcome could not be known, and it was sent again all the same.
  add column if not exists doubts      smallint not null default 0,
  -- The login it was claimed under. Another login (an older snapshot) cannot say what became of it.
  add column if not exists login_epoch bigint,
  -- It opens a conversation.
  add column if not exists cold        boolean not null default false,
  -- Rises with every change to what waits: a claim that read the version before does not take it.
  add column if not exists revision    int not null default 0;
drop index if exists public.outbox_lane;
-- The head of a chat is one index probe, however much waits behind it.
create index if not exists outbox_chat on public.outbox (chat_id, id) where state = 'q';
create index if not exists outbox_queued on public.outbox (id) where state = 'q';
create index if not exists outbox_scheduled on public.outbox (send_at) where state = 'z';

-- One row a chat that has, or had, something to send. A claim looks at lanes, not at messages: a chat that backs off, or waits for an ack,
-- lies ahead in its lane's due_at and is not even seen, so it holds up nobody and costs nothing.
create table if not exists public.outbox_lanes (
  chat_id         uuid primary key references public.chats on delete cascade,
  workspace_id    uuid not null references public.workspaces on delete cascade,
  session_id      uuid not null references public.wa_sessions on delete cascade,
  -- Messages of the chat in the outbox that are not scheduled: kept under the lane's own lock, so that no acceptance is ever missed.
  waiting         int not null default 0 check (waiting >= 0),
  -- When the next one may be claimed. Infinity: one is on its way.
  due_at          timestamptz not null default now(),
  -- A conversation that the next message would open. Such lanes have a budget.
  cold            boolean not null,
  -- In quiet hours only who wrote within the last day is answered.
  last_inbound_at timestamptz
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index if not exists outbox_lanes_due on public.outbox_lanes (session_id, cold, due_at) where waiting > 0;
create index if not exists outbox_lanes_replies on public.outbox_lanes (session_id, last_inbound_at) where waiting > 0;
alter table public.outbox_lanes enable row level security;

-- The pace of each session: what was set for it (null: the worker's own setting), and where it stands.
create table if not exists public.wa_session_pacing (
  session_id           uuid primary key references public.wa_sessions on delete cascade,
  workspace_id         uuid not null references public.workspaces on delete cascade,
  min_gap_ms           int check (min_gap_ms between 0 and 3600000),
  jitter_ms            int check (jitter_ms between 0 and 3600000),
  per_minute           int check (per_minute between 0 and 1000),
  new_contacts_per_day int check (new_contacts_per_day between 0 and 1000000),
  typing               boolean,
  -- Since when the number is in use, where that is earlier than its first link here: it shortens the warm-up.
  number_since         date,
  quiet_from           time,
  quiet_to             time,
  time_zone            text not null default 'UTC',

  -- No message leaves before, and why.
  next_send_at         timestamptz not null default '-infinity',
  held_by              text,
  -- The latest sends, as many as the cap per minute counts.
  recent               timestamptz[] not null default '{}',
  -- Conversations opened on that day of the time zone.
  new_on               date,
  new_contacts         int not null default 0,
  -- No conversation is opened before, and why.
  cold_at              timestamptz not null default '-infinity',
  cold_held_by         text,
  -- First messages refused in a row.
  cold_refusals        int not null default 0,
  check ((quiet_from is null) = (quiet_to is null))
);
alter table public.wa_session_pacing enable row level security;

alter table public.wa_sessions
  -- Rises whenever the login on disk is replaced by a snapshot.
  add column if not exists login_epoch bigint not null default 0,
  -- First link of the number it has.
  add column if not exists linked_at   timestamptz;

-- What is there already.
insert into public.wa_session_pacing (session_id, workspace_id) select id, workspace_id from public.wa_sessions on conflict do nothing;
update public.wa_sessions set linked_at = coalesce(connected_at, created_at) where wa_id is not null and linked_at is null;
update public.chats c set last_inbound_at = m.at
  from (select chat_id, max(created_at) as at from public.messages where direction = 'inbound' group by chat_id) m where m.chat_id = c.id;
update public.chats c set contacted_at = m.at
  from (select chat_id, max(created_at) as at from public.messages where direction = 'outbound' and ack >= 1 group by chat_id) m where m.chat_id = c.id;
insert into public.outbox_lanes (chat_id, workspace_id, session_id, waiting, due_at, cold, last_inbound_at)
  select c.id, c.workspace_id, c.session_id, count(*), case when bool_or(o.state = 's') then 'infinity' else now() end,
    c.last_inbound_at is null and c.contacted_at is null and not c.is_group, c.last_inbound_at
  from public.outbox o join public.chats c on c.id = o.chat_id group by c.id
  on conflict do nothing;
-- Whether a message is on its way is said by the outbox alone.
update public.messages set status = 'queued' where status = 'sending';

-- What is to be done on WhatsApp beside sending: reactions, edits, revocations, "seen", "typing", and questions about numbers. Done once each, in order
-- within a session, as soon as it works.
create table if not exists public.wa_actions (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  chat_id      uuid references public.chats on delete cascade,
  message_id   uuid references public.messages on delete cascade,
  kind         text not null check (kind in ('react', 'edit', 'revoke', 'seen', 'typing', 'check_number')),
  payload      jsonb not null default '{}',
  attempts     smallint not null default 0,
  due_at       timestamptz not null default now(),
  -- Nobody wants it any more after that.
  expires_at   timestamptz not null,
  created_at   timestamptz not null default now(),
  done_at      timestamptz,
  result       jsonb,
  error_code   text,
  error_message text
);
create index if not exists wa_actions_due on public.wa_actions (session_id, due_at) where done_at is null;
create index if not exists wa_actions_age on public.wa_actions (created_at);
alter table public.wa_actions enable row level security;

-- What is known of numbers: whether they are on WhatsApp, and under which address.
create table if not exists public.wa_numbers (
  workspace_id uuid not null references public.workspaces on delete cascade,
  phone        text not null,
  wa_id        text,
  checked_at   timestamptz not null default now(),
  primary key (workspace_id, phone)
);
alter table public.wa_numbers enable row level security;
