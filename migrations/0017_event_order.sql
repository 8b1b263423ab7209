-- The last event of each workspace that the retention has removed: whoever asks for what came after an earlier one is told that there is a gap.
alter table public.workspaces
  add column if not exists events_removed_tx xid8,
  add column if not exists events_removed_id bigint;
