/** Whether there is such a day, written as 2024-05-31, also for Postgres, whose first year is 1. */
export function isDay(day: string): boolean {
  const at = new Date(`${day}T00:00:00Z`)
  // Date counts a 30th of February as a day in March.
  return !Number.isNaN(at.getTime()) && at.toISOString().startsWith(`${day}T`) && day >= '0001'
}
