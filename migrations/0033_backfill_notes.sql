-- How often it was noted that something had been missed: a reading ends only what had been noted when it began.
alter table public.wa_sessions add column if not exists backfill_notes int not null default 0;
