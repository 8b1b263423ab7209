-- What is scheduled for one time is released in the order it was accepted in: without the second column all that is due is sorted for each release.
drop index if exists public.outbox_scheduled;
create index outbox_scheduled on public.outbox (send_at, id) where send_at is not null;
