-- What a team adds to a conversation: who sees to it, what it is about, and what they tell each other. None of it leaves for WhatsApp.
alter table public.chats
  add column if not exists assignee_id uuid references public.profiles on delete set null;
-- The chats of one person; also what their removal looks for.
create index if not exists chats_assignee on public.chats (assignee_id, last_message_at desc, id desc) where assignee_id is not null;
-- A list of few chats must not cost a walk over all.
create index if not exists chats_unread on public.chats (workspace_id, last_message_at desc, id desc) where unread_count > 0;
create index if not exists chats_archived on public.chats (workspace_id, last_message_at desc, id desc) where archived;

create table if not exists public.labels (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  name         text not null check (length(name) between 1 and 60),
  color        text not null check (color ~ '^#[0-9a-f]{6}$'),
  created_at   timestamptz not null default now()
);
create unique index if not exists labels_name on public.labels (workspace_id, lower(name));
create index if not exists labels_list on public.labels (workspace_id, created_at desc, id desc);

create table if not exists public.chat_labels (
  chat_id      uuid not null references public.chats on delete cascade,
  label_id     uuid not null references public.labels on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  primary key (chat_id, label_id)
);
create index if not exists chat_labels_label on public.chat_labels (label_id, chat_id);

create table if not exists public.chat_notes (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  chat_id      uuid not null references public.chats on delete cascade,
  -- Null: whoever wrote it has left.
  author_id    uuid references public.profiles on delete set null,
  body         text not null check (length(body) between 1 and 10000),
  created_at   timestamptz not null default now(),
  edited_at    timestamptz
);
create index if not exists chat_notes_list on public.chat_notes (chat_id, created_at desc, id desc);
create index if not exists chat_notes_author on public.chat_notes (author_id) where author_id is not null;

alter table public.labels enable row level security;
alter table public.chat_labels enable row level security;
alter table public.chat_notes enable row level security;
