-- The first message of a chat, by an order that no other index has: asked for the lowest id of a chat, Postgres may walk all ids from the lowest on until it
-- meets one of that chat, which it takes for near when chats are few; behind a large mailing it is not.
drop index if exists public.outbox_chat;
create index outbox_chat on public.outbox (chat_id, (id + 0)) where send_at is null;
