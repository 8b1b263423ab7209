-- When a restore found that a snapshot cannot be used; null while none did. It is tried again all the same, a store may have read badly, but it no longer
-- counts as one of the generations that are kept: it must not push out the last that works.
alter table public.wa_snapshots add column if not exists refused_at timestamptz;
