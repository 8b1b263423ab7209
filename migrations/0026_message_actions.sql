-- What was asked to be changed about a message, and what came of it, is shown with the message.
create index if not exists wa_actions_message on public.wa_actions (message_id) where message_id is not null;
-- Wishes that are still open may be of any age: those that are done go after a week.
drop index if exists public.wa_actions_age;
create index if not exists wa_actions_done on public.wa_actions (done_at) where done_at is not null;
-- A failed change used to be told as an error of the message itself, which had been sent all the same.
update public.messages set error_code = null, error_message = null
  where error_code is not null and status in ('sent', 'delivered', 'read', 'played');
