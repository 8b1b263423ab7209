-- messages.media_id: the id of a file, or of one that was deleted. As a foreign key it had every message of a file written anew when that was deleted, with its place in the
-- index of words, in one statement: of a picture that went to a whole mailing that took seconds, in which nobody of any workspace was told anything. Whoever hands in a message
-- holds the file meanwhile: see accept().
alter table public.messages drop constraint if exists messages_media_id_fkey;
