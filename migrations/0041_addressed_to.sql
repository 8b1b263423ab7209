-- messages.addressed_to: the number a message was handed in for, where its chat has another address of that person. It is told as where the message goes; null: the address of
-- its chat is.
alter table public.messages add column if not exists addressed_to text;
