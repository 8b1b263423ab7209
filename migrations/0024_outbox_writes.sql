-- What a claim writes. An update that touches no indexed column, in a page that has room, leaves all indexes of its table alone; a message being
-- claimed must therefore not move from one partial index to another. What is scheduled has a send_at, and loses it when its time has come.
update public.outbox set send_at = null where state <> 'z' and send_at is not null;
drop index if exists public.outbox_chat;
drop index if exists public.outbox_queued;
drop index if exists public.outbox_claimed;
drop index if exists public.outbox_scheduled;
create index if not exists outbox_chat on public.outbox (chat_id, id) where send_at is null;
create index if not exists outbox_queued on public.outbox (id) where send_at is null;
create index if not exists outbox_scheduled on public.outbox (send_at) where send_at is not null;
alter table public.outbox set (fillfactor = 70);
alter table public.wa_session_pacing set (fillfactor = 50);
-- Most lanes of a mailing belong to people who never wrote.
drop index if exists public.outbox_lanes_replies;
create index if not exists outbox_lanes_replies on public.outbox_lanes (session_id, last_inbound_at) where waiting > 0 and last_inbound_at is not null;
-- The acks of a message come soon after it: there is room for them beside it.
alter table public.messages set (fillfactor = 85);
