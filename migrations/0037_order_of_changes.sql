-- Events are read in the order of tx, and only below every transaction that still runs. A transaction's own number says when it began to write, not when it
-- changed what an event tells of: one that had to wait for a row has a lower number than the one it waited for. So an event carries the highest
-- number that had ended when it was written, if that is higher: whoever held the row before has ended by then, and is told of first. It is never lower
-- than the transaction's own, so that nothing appears below what has been read; and never that of one to come, which a quiet database would wait for.
alter table public.events alter column tx
  set default greatest(pg_current_xact_id(), (pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text::xid8);
