// Package audit keeps the record of what was decided: one line of JSON for each
// decision, appended before the decision takes effect, each line chained to the
// one before it. It decides nothing, interprets nothing that it writes down,
// and never changes or removes a line, but for files beyond those to be kept.
//
// # Shape
//
// Lines follow OCSF 1.8 (schema.ocsf.io): Network Activity (4001) for
// connections, File System Activity (1001) and Kernel Activity (1003), blocked,
// for what Landlock and seccomp refused, Device Config State Change (5019) for
// everything said about the sandbox itself. What OCSF has no word for stands under "unmapped". A line is
// printable ASCII: everything else is escaped, because agents choose host names
// and those of programs, and terminals obey escape sequences and bidirectional marks.
//
// # Chain
//
// A line carries its number (metadata.sequence, from 1) and the SHA-256 of the
// line before it (unmapped.prev; zeros before the first). The head, which is the
// last line's number, hash and end, is kept in a second file, so that a cut tail
// is found too. Every sandbox of the same name appends to the same file: its
// lines are a segment, from a "segment" line to an "end" line, and the whole
// file is one chain. Whoever may write both files can forge both: the chain
// finds accidents and edits, it does not replace shipping the log elsewhere.
//
// Where the settings say so the log goes on in another file ([Rotation]); its
// first line is chained to the last of the one before, and each file has a head.
//
// # Crashes
//
// A line is in the kernel when [Log.Append] returns and on the disk 100 ms
// later. [Open] continues after whatever a crash has left: an unfinished line
// is sealed by a line that holds its hash; a tail that is shorter than the head
// says leaves a break in the chain for [Verify] to report.
//
// # Others
//
// Somebody else may move, cut off, remove or write to a log that is open. That is
// found before the next line is written, and by [Log.Check]; the log goes on in
// the file of its name, and its next line tells what was found.
package audit
