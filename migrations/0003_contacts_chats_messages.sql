-- A person (or business) a workspace talks to.
create table if not exists public.contacts (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  wa_id        text not null,
  name         text,
  push_name    text,
  phone        text,
  lid          text,
  is_business  boolean not null default false,
  opted_out    boolean not null default false,
  created_at   timestamptz not null default now(),
  unique (workspace_id, wa_id)
);
create index if not exists contacts_list on public.contacts (workspace_id, created_at desc, id desc);

-- A conversation of one session with one contact or group, under the address it came from.
create table if not exists public.chats (
  id              uuid primary key default gen_random_uuid(),
  workspace_id    uuid not null references public.workspaces on delete cascade,
  session_id      uuid not null references public.wa_sessions on delete cascade,
  wa_chat_id      text not null,
  name            text,
  is_group        boolean not null default false,
  contact_id      uuid references public.contacts on delete set null,
  unread_count    int not null default 0 check (unread_count >= 0),
  last_message_id uuid,
  last_message_at timestamptz not null default now(),
  archived        boolean not null default false,
  created_at      timestamptz not null default now(),
  unique (session_id, wa_chat_id)
);
create index if not exists chats_list on public.chats (workspace_id, last_message_at desc, id desc);
create index if not exists chats_contact on public.chats (contact_id) where contact_id is not null;

create table if not exists public.messages (
  id                uuid primary key default gen_random_uuid(),
  -- Order of arrival: decides between messages of the same instant.
  seq               bigint generated always as identity,
  workspace_id      uuid not null references public.workspaces on delete cascade,
  session_id        uuid not null references public.wa_sessions on delete cascade,
  chat_id           uuid not null references public.chats on delete cascade,
  direction         text not null check (direction in ('inbound', 'outbound')),
  source            text not null check (source in ('api', 'phone', 'live', 'history', 'backfill')),
  type              text not null check (type in ('text', 'image', 'video', 'document', 'audio', 'voice', 'sticker',
                      'location', 'contact', 'poll', 'system', 'unknown')),
  body              text,
  status            text not null check (status in ('queued', 'sending', 'sent', 'delivered', 'read', 'played',
                      'failed', 'unknown', 'cancelled', 'received')),
  -- What WhatsApp confirmed: -1 refused, 0 nothing, 1 server, 2 device, 3 read, 4 played.
  ack               smallint check (ack between -1 and 4),
  error_code        text,
  error_message     text,
  attempts          int not null default 0,

  -- WhatsApp's own id, in parts: the serialized form changes with the address (@c.us, @lid) it is seen under.
  wa_key_id         text,
  wa_participant    text not null default '',
  wa_message_id     text,
  author_wa_id      text,
  author_name       text,
  quoted_message_id uuid references public.messages on delete set null,
  sent_by           uuid references public.profiles on delete set null,
  -- The HTTP request that created it; the worker's log lines carry it.
  request_id        text,

  created_at        timestamptz not null default now(),
  sent_at           timestamptz,
  delivered_at      timestamptz,
  read_at           timestamptz,
  edited_at         timestamptz,
  revoked_at        timestamptz
);
-- A message exists once, however often WhatsApp reports it and under whichever address.
create unique index if not exists messages_wa_key on public.messages
  (session_id, (direction = 'outbound'), wa_key_id, wa_participant) where wa_key_id is not null;
create index if not exists messages_chat on public.messages (chat_id, created_at desc, seq desc);
create index if not exists messages_workspace on public.messages (workspace_id, created_at desc);

alter table public.contacts enable row level security;
alter table public.chats enable row level security;
alter table public.messages enable row level security;
