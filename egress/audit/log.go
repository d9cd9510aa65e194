package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
)

const (
	// MaxLine is the longest line in bytes, with its line feed.
	MaxLine = limits.Line
	// reserve is the room kept on the disk for lines to come, in bytes.
	reserve = limits.Reserve
	// syncDelay is how long a line may be in the kernel only.
	syncDelay = limits.Sync
	// maxKept is how much room for lines is kept for the next, in bytes.
	maxKept = 64 << 10
	// lockWait is how long Open waits for the log's last writer to end.
	lockWait = 2 * time.Second
)

// Log is an audit log open for appending. Its methods may be called from
// several goroutines.
type Log struct {
	name string

	mu          sync.Mutex
	file        *os.File
	head        *os.File
	end         Head      // the last whole line in the file
	torn        []byte    // an unfinished line behind end; sealed by the next Append
	unconfirmed bool      // something was written and Append returned an error
	fault       error     // why the last write or sync did not work
	unsynced    bool      // there are lines that no sync was begun for
	since       time.Time // of the first of them
	syncing     time.Time // of the first line that a sync in the background is for; zero: there is none
	timer       *time.Timer
	allocated   int64 // up to this offset the disk has room
	closed      bool
	toDisk      func(...*os.File) error // fdatasync(2); some tests have a slow disk
	text        []byte                  // room for the next lines, and their heads
	ends        []Head
	changed     chan struct{} // closed when end has moved or the log is closed
	recovered   []string
	segment     int64  // offset of the first line of this sandbox, in the file that Open found
	before      uint64 // number of the line before that
	rotation    Rotation
	begun       time.Time   // when the file's first line was written
	retry       time.Time   // before, no rotation is tried
	last        os.FileInfo // of the file that Close closed
	older       []former    // what became of the file, each time since Open that the log went on in another
	forgotten   int         // how many were before these, and are not kept any more

	id        string   // the sandbox that wrote last
	untold    []string // what somebody else did to the log, and no line tells yet
	lost      bool     // lines of it with that, so that the next does not go on where an older file ends
	found     []string // the first of all that was untold
	disturbed int      // how many there were
}

// Open opens the log for appending, makes it (mode 0600) if it is missing, and
// recovers from whatever its last writer left. It waits up to two seconds for
// another writer to end, and fails if that one does not.
func Open(file string) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("cannot open the audit log: %w", err)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the audit log: %w", err)
	}
	l := &Log{name: file, file: f, changed: make(chan struct{}), toDisk: datasync}
	if err := l.open(); err != nil {
		f.Close()
		if l.head != nil {
			l.head.Close()
		}
		return nil, err
	}
	return l, nil
}

func (l *Log) open() (err error) {
	if fi, err := l.file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return fmt.Errorf("cannot open the audit log: %s is not a file", l.name)
	}
	if err := lock(l.file, lockWait); err != nil {
		return fmt.Errorf("cannot open the audit log %s: another gateway writes it: %w", l.name, err)
	}
	if !l.named() {
		return fmt.Errorf("cannot open the audit log %s: another gateway has begun another file", l.name)
	}
	if l.head, err = os.OpenFile(HeadFile(l.name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
		return fmt.Errorf("cannot open the audit log's head: %w", err)
	}
	if err := l.recover(); err != nil {
		return fmt.Errorf("cannot open the audit log: %w", err)
	}
	l.begun = firstTime(l.file)
	l.segment, l.before = l.end.Offset, l.end.Sequence
	if len(l.torn) > 0 {
		l.segment += int64(len(l.torn)) + 1
	}
	return nil
}

// named tells whether the file still has its name: a log that was rotated while
// its lock was waited for has not.
func (l *Log) named() bool {
	own, err := l.file.Stat()
	there, terr := os.Lstat(l.name)
	return err == nil && terr == nil && os.SameFile(own, there)
}

// lock takes the writer's lock; the kernel releases it when its holder ends.
func lock(f *os.File, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// recover finds the end of the chain, and what happened to it. The file is
// never made shorter: what does not belong stays, and the next line says so.
func (l *Log) recover() error {
	size, err := l.size()
	if err != nil {
		return err
	}
	head, err := readHead(l.head)
	again := false
	if err == nil {
		if again, err = l.rotated(head, size); err != nil {
			return err
		}
	}
	switch {
	case again:
		l.end = Head{Sequence: head.Sequence, Hash: head.Hash}
		return nil
	case err != nil:
		l.find("the head file was unreadable")
		head = nil
		if err := l.head.Truncate(0); err != nil { // it may have been longer
			return err
		}
	case head == nil && size > 0:
		l.find("the head file was missing")
	case head != nil && !l.endsWith(*head, size):
		// The head is what was written last; going on from it leaves a
		// link that no line of the file answers.
		l.find(fmt.Sprintf("the log did not end with line %d, as its head says: lines were cut off or changed", head.Sequence))
		l.end = *head
		l.end.Offset = size
		return l.readTorn(size)
	}
	if head != nil {
		l.end = *head
	} else {
		l.end = Head{Hash: genesis}
	}
	return l.adopt(size)
}

func (l *Log) find(what string) { l.recovered = append(l.recovered, what) }

func (l *Log) size() (int64, error) {
	fi, err := l.file.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// endsWith reports whether the line that the head names is where it says.
func (l *Log) endsWith(h Head, size int64) bool {
	if h.Sequence == 0 || h.Length == 0 { // no line of the chain, or none in this file
		return h.Offset == 0
	}
	if h.Offset > size || h.Length < 1 || h.Length > MaxLine {
		return false
	}
	line := make([]byte, h.Length)
	if _, err := l.file.ReadAt(line, h.Offset-h.Length); err != nil {
		return false
	}
	return line[h.Length-1] == '\n' && hash(line[:h.Length-1]) == h.Hash
}

// adopt follows the lines behind end, which were written after the head was:
// a writer was killed in between, or somebody added them.
func (l *Log) adopt(size int64) error {
	r := bufio.NewReaderSize(io.NewSectionReader(l.file, l.end.Offset, size-l.end.Offset), 64<<10)
	for {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, errUnfinished) {
			l.torn = line
			l.find(fmt.Sprintf("line %d was unfinished", l.end.Sequence+1))
			return nil
		}
		if err != nil {
			return err
		}
		k, ok := parseLink(line)
		next := l.end.after(append(line, '\n'))
		if !ok || k.seq != next.Sequence || k.prev != l.end.Hash {
			l.find(fmt.Sprintf("what follows line %d does not belong to the log", l.end.Sequence))
			l.end.Offset = size
			return l.readTorn(size)
		}
		l.end = next
	}
}

// readTorn looks whether the file ends in the middle of a line.
func (l *Log) readTorn(size int64) error {
	tail := make([]byte, min(size, MaxLine))
	if _, err := l.file.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if tail = tail[bytes.LastIndexByte(tail, '\n')+1:]; len(tail) > 0 {
		l.torn = tail
		l.end.Offset = size - int64(len(tail))
	}
	return nil
}

// Recovered tells what Open found wrong with the log; nothing, as a rule. The
// caller writes it down.
func (l *Log) Recovered() []string { return l.recovered }

// End returns the head as it is now.
func (l *Log) End() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Fault is why the log cannot be written at present, or nil.
func (l *Log) Fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// Lag returns for how long the oldest line that is not on the disk has waited.
func (l *Log) Lag() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.syncing.IsZero():
		return time.Since(l.syncing)
	case l.unsynced:
		return time.Since(l.since)
	}
	return 0
}

// Append writes entries with one write(2) and returns once the kernel has them.
// On an error none of them counts, although some may be in the file: the line
// that follows says so. The error stays until a later Append works.
func (l *Log) Append(entries ...Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("cannot record: the audit log is closed")
	}
	if err := l.append(entries); err != nil {
		l.fault = err
		return err
	}
	l.fault = nil
	return nil
}

func (l *Log) append(entries []Entry) error {
	if len(entries) > 0 {
		l.id = entries[0].base().Device.UID
	}
	if err := l.settle(); err != nil {
		return err
	}
	entries = l.begin(append(l.findings(l.id), entries...))
	text, ends, err := l.encode(entries)
	if err != nil {
		return err
	}
	if l.text, l.ends = text, ends; cap(text) > maxKept {
		l.text = nil // one flood is no reason to keep its room for ever
	}
	n, err := l.file.Write(text)
	l.advance(text[:max(n, 0)], ends)
	l.unconfirmed = l.unconfirmed || n > 0
	if err != nil {
		return fmt.Errorf("cannot record: %w", err)
	}
	if err := writeHead(l.head, l.end); err != nil {
		return err
	}
	if l.fault != nil { // what failed before may have been the disk
		if err := l.sync(); err != nil {
			return err
		}
	}
	l.unconfirmed, l.lost, l.untold = false, false, nil
	l.syncSoon()
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// begin rotates the log if it is due, and puts before entries what is to be said
// of that.
func (l *Log) begin(entries []Entry) []Entry {
	if len(entries) == 0 {
		return entries
	}
	id := entries[0].base().Device.UID
	if now := time.Now(); l.due(now) {
		if failed := l.rotate(now); failed != "" {
			line := NewChange(id, KindNote, failed)
			line.SeverityID, line.StatusID = High, 2
			return append([]Entry{line}, entries...)
		}
	}
	if l.end.Offset == 0 && l.end.Sequence > 0 && len(l.torn) == 0 && !l.lost {
		return append([]Entry{l.continued(id)}, entries...)
	}
	return entries
}

// encode makes the text of entries, and the head after each of their lines. An
// unfinished line before them is ended and sealed first.
func (l *Log) encode(entries []Entry) (text []byte, ends []Head, err error) {
	now := time.Now()
	end := l.end
	text, ends = l.text[:0], l.ends[:0]
	if len(l.torn) > 0 || l.unconfirmed {
		entries = append([]Entry{l.seal(entries)}, entries...)
	}
	if len(l.torn) > 0 {
		text = append(text, '\n')
		end.Offset += int64(len(l.torn)) + 1
		end.Hash = hash(l.torn)
	}
	for _, e := range entries {
		start := len(text)
		if text, err = encode(text, e, end.Sequence+1, end.Hash, now); err != nil {
			return nil, nil, err
		}
		end = end.after(text[start:])
		ends = append(ends, end)
	}
	return text, ends, nil
}

// seal is the line behind an unfinished one, or behind lines whose writing was
// not confirmed.
func (l *Log) seal(entries []Entry) *Change {
	id := ""
	if len(entries) > 0 {
		id = entries[0].base().Device.UID
	}
	msg := "what stands before this line was not confirmed to its writer: such connections were refused"
	if !l.unconfirmed {
		msg = "the line before this one was never finished"
	}
	c := NewChange(id, KindRecovered, msg)
	c.SeverityID = High
	c.StatusID = 2
	if len(l.torn) > 0 {
		c.Unmapped.Torn = hash(l.torn)
	}
	return c
}

// advance moves the end over the whole lines among the bytes that were
// written; the rest is an unfinished line.
func (l *Log) advance(written []byte, ends []Head) {
	start := l.end.Offset + int64(len(l.torn))
	for i := len(ends) - 1; i >= 0; i-- {
		if past := ends[i].Offset - start; past <= int64(len(written)) {
			l.end = ends[i]
			l.torn = bytes.Clone(written[past:])
			return
		}
	}
	l.torn = append(l.torn, written...)
}

// syncSoon has everything on the disk within syncDelay, and room for more.
func (l *Log) syncSoon() {
	if l.unsynced {
		return
	}
	l.unsynced, l.since = true, time.Now()
	if l.syncing.IsZero() { // else it goes on with these lines
		l.timer = time.AfterFunc(syncDelay, l.syncNow)
	}
}

// syncNow does it. The disk may take a while, and no connection waits for it:
// what is appended meanwhile is synced next. A file that is exchanged or closed
// meanwhile was synced for that.
func (l *Log) syncNow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || !l.unsynced || !l.syncing.IsZero() {
		return
	}
	l.unsynced, l.syncing = false, l.since
	file, head := l.file, l.head
	l.mu.Unlock()
	err := l.toDisk(file, head)
	l.mu.Lock()
	l.syncing = time.Time{}
	if l.closed {
		return
	}
	if err != nil && l.file == file {
		l.fault = err
	}
	if l.end.Offset+reserve/2 > l.allocated {
		l.allocate()
	}
	if l.unsynced {
		l.timer = time.AfterFunc(syncDelay-time.Since(l.since), l.syncNow)
	}
}

// sync has everything on the disk before it returns.
func (l *Log) sync() error {
	l.unsynced = false
	return l.toDisk(l.file, l.head)
}

// datasync is fdatasync(2), of files that another goroutine may close.
func datasync(files ...*os.File) error {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var serr error
		if err := raw.Control(func(fd uintptr) { serr = unix.Fdatasync(int(fd)) }); err != nil {
			return err
		}
		if serr != nil {
			return fmt.Errorf("cannot record: cannot sync %s: %w", f.Name(), serr)
		}
	}
	return nil
}

// allocate keeps room for lines to come, where the file system can
// (fallocate(2); FALLOC_FL_KEEP_SIZE since Linux 2.6.38). Without room the
// write itself will fail, and that is an answer too.
func (l *Log) allocate() {
	if err := unix.Fallocate(int(l.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, l.end.Offset, reserve); err == nil {
		l.allocated = l.end.Offset + reserve
	} else {
		l.allocated = 1<<63 - 1 // do not ask again
	}
}

// Close writes what is still in the kernel to the disk, gives back the room
// that was kept, and lets the next writer in.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	err := l.sync()
	// Blocks beyond the end are freed by "changing" the size to what it is.
	_ = l.file.Truncate(l.end.Offset + int64(len(l.torn)))
	l.last, _ = l.file.Stat()
	close(l.changed)
	l.head.Close()
	if cerr := l.file.Close(); err == nil {
		err = cerr
	}
	return err
}
