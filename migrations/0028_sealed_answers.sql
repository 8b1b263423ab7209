-- Answers that hold a secret are kept sealed: the name of the key, and then `body` is the box. They are told again to whoever repeats the request, and to nobody who
-- reads the table.
alter table public.idempotency_keys add column if not exists sealed_with text;
