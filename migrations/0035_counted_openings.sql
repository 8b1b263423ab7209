-- When a message was counted as a conversation opened: only what was counted today is given back today.
alter table public.outbox add column if not exists counted_at timestamptz;

-- The first message of the chat was counted, tried and put back: no budget holds it any more, a lock of WhatsApp's does.
alter table public.outbox_lanes add column if not exists opening boolean not null default false;

-- contacts.opted_out_at: since when it is so, of an opt-in as well. What was wished before that changes nothing, however late it is read.
