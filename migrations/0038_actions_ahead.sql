-- Whether the same was asked for before, of the same message or chat, is one probe, however much waits there.
create index if not exists wa_actions_ahead on public.wa_actions (chat_id, kind, id) where done_at is null;
