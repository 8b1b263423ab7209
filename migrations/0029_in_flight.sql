-- The message a session has in its hands, by its place in the outbox. Each claim writes this row anyway; the lane of the chat, with its indexes, is written
-- only when the session goes on to another chat before that message is confirmed.
alter table public.wa_session_pacing add column if not exists in_flight bigint;
