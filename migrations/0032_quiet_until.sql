-- When the quiet hours end that it is at a moment; null when it is not. They began on that day there, or on the one before; they are moments, so that a clock that is
-- changed meanwhile neither ends nor repeats them. In a language that is not written into the statements that call it: most sessions have no quiet hours, and nearly
-- every statement about messages asks for them.
create or replace function public.quiet_until(quiet_from time, quiet_to time, time_zone text, at timestamptz) returns timestamptz
  language plpgsql stable strict parallel safe as $$
declare
  nights int := (quiet_to <= quiet_from)::int;
  day date := (at at time zone time_zone)::date;
begin
  for began in 0..1 loop
    if at >= (day - began + quiet_from) at time zone time_zone and at < (day - began + nights + quiet_to) at time zone time_zone then
      return (day - began + nights + quiet_to) at time zone time_zone;
    end if;
  end loop;
  return null;
end $$;
