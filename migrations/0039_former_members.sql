-- What is left of who was removed from a workspace: the name under which their messages stand. Address, password and whatever else was theirs are deleted with the profile.
create table if not exists public.former_members (
  id           uuid primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  full_name    text not null,
  removed_at   timestamptz not null default now()
);
create index if not exists former_members_workspace on public.former_members (workspace_id);
alter table public.former_members enable row level security;

-- The id of a profile, or of a former member. As a foreign key it had every message of a person written anew when they were removed, found by a look at all messages of all
-- workspaces, and had whoever sends hold the profile, against its removal, while it waits for others.
alter table public.messages drop constraint if exists messages_sent_by_fkey;
alter table public.batches drop constraint if exists batches_created_by_fkey;
