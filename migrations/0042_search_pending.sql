-- Words of new messages are gathered and put into the index many at a time. One at a time, each word that many messages have is unpacked, added to and packed again
-- for each of them: a batch of a thousand long texts took 9 ms of processor time a message, and takes 3. No more than 1 MB is gathered: every week of a search looks through it
-- (0.2 ms), and whoever fills it puts it in place (some 50 ms).
alter index if exists public.messages_search set (fastupdate = on, gin_pending_list_limit = 1024);
