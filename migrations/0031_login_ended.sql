-- Under which fence the session's login was last put away or destroyed: a profile used under that one or an earlier, on whatever machine it lies, is of before.
alter table public.wa_sessions add column if not exists login_ended_fence bigint;
