-- Changes that were told before the message they change: what came while nobody listened is read again after what happens now is heard. They are made once the message
-- is stored; what no message came for goes after a week.
create table if not exists public.early_changes (
  id             bigint generated always as identity primary key,
  workspace_id   uuid not null references public.workspaces on delete cascade,
  session_id     uuid not null references public.wa_sessions on delete cascade,
  -- The message, as far as it is known.
  from_me        boolean not null,
  wa_key_id      text not null,
  wa_participant text not null,
  wa_chat_id     text not null,
  kind           text not null check (kind in ('edit', 'revocation', 'reaction', 'vote')),
  -- Who reacted or voted; 'me' for the session's own account.
  wa_id          text,
  -- The new text, or the emoji.
  body           text,
  options        text[],
  at             timestamptz not null,
  created_at     timestamptz not null default now()
);
create index if not exists early_changes_message on public.early_changes (session_id, wa_key_id);
create index if not exists early_changes_age on public.early_changes (created_at);
alter table public.early_changes enable row level security;
