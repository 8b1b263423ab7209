import { fragment } from './db.ts'
import type { Fragment } from './db.ts'
import { closed } from './new-conversations.ts'
import { answerWindow, chatInHand, quietUntil } from './pacing.ts'
import { statusOf } from './wa-session-leases.ts'

/** What joinHold() is told of a message, beside what stands in `s` (wa_sessions), `l` (outbox_lanes) and `p` (wa_session_pacing). */
export interface Waiting {
  /** As outbox.state; null when it does not wait. */
  state: Fragment
  sendAt: Fragment | Date | undefined
  lastInboundAt: Fragment
  /** It would open a conversation. */
  cold: Fragment
}

/**
 * Joins `hold`: why a message waits (held_by), and until when where that is known (not_before); of several reasons the one that lasts longest. Any of `s`, `l` and `p` may be missing.
 */
export const joinHold = (of: Waiting) => fragment`
  cross join lateral (
    select
      case when w.state = 'z' then 'SCHEDULED' when w.state is distinct from 'q' then null when w.status <> 'WORKING' then 'SESSION_' || w.status
        when w.busy then 'PREVIOUS_UNCONFIRMED' when w.until = w.retry_at then 'RETRY_BACKOFF' when w.until = w.cold_until then w.cold_held_by
        when w.until = w.quiet_until then 'QUIET_HOURS' when w.until = w.paced_until then w.paced_by end as held_by,
      case when w.state = 'z' then w.send_at when w.state = 'q' and w.status = 'WORKING' and not w.busy then w.until end as not_before
    from (
      select w.*, greatest(w.retry_at, w.cold_until, w.quiet_until, w.paced_until) as until
      from (
        select ${of.state} as state, ${of.sendAt}::timestamptz as send_at, ${statusOf} as status,
          coalesce(l.due_at = 'infinity' or l.chat_id = ${chatInHand}, false) as busy,
          case when l.due_at > now() and l.due_at < 'infinity' then l.due_at end as retry_at,
          case when ${of.cold} then ${closed.until} end as cold_until, ${closed.by} as cold_held_by,
          case when coalesce(${of.lastInboundAt} < now() - ${answerWindow}, true) then ${quietUntil} end as quiet_until,
          case when p.next_send_at > now() then p.next_send_at end as paced_until, p.held_by as paced_by
        offset 0) w) w) hold`
