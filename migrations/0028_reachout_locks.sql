-- A lock of WhatsApp's on new conversations, apart from the budget of the day: whoever raises the budget must not lift it.
alter table public.wa_session_pacing
  add column if not exists locked_at timestamptz not null default '-infinity',
  add column if not exists locked_by text;
update public.wa_session_pacing set locked_at = cold_at, locked_by = cold_held_by where cold_held_by like 'REACHOUT\_%';
