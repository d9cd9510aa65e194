package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Rotation says when a log goes on in another file. What was written lies then
// in FILE.1, FILE.2 and so on, each with a head of its own, and never moves
// again: the highest number is the youngest. The zero Rotation keeps one file.
type Rotation struct {
	Size int64         // bytes in one file, from which on the next is begun; 0: any
	Age  time.Duration // of its first line; 0: any
	Keep int           // older files that are kept; 0: all
}

// retryRotation is how long a log that could not be rotated stays as it is.
const retryRotation = time.Minute

// Parts returns the files of a log, the oldest first; the last is file itself,
// whether it is there or not.
func Parts(file string) ([]string, error) {
	numbers, err := numbered(file)
	if err != nil {
		return nil, err
	}
	var parts []string
	for _, n := range numbers {
		parts = append(parts, part(file, n))
	}
	return append(parts, file), nil
}

func part(file string, n uint64) string { return file + "." + strconv.FormatUint(n, 10) }

// numbered returns the numbers of the older files of a log, rising.
func numbered(file string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("cannot find the files of the audit log: %w", err)
	}
	var numbers []uint64
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), filepath.Base(file)+".")
		n, err := strconv.ParseUint(text, 10, 63)
		if ok && err == nil && n > 0 && strconv.FormatUint(n, 10) == text {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// OpenParts returns the text of a whole log, the older files first.
func OpenParts(file string) (io.ReadCloser, error) {
	for {
		names, err := Parts(file)
		if err != nil {
			return nil, err
		}
		set, err := openParts(names)
		if again, aerr := Parts(file); aerr == nil && slices.Equal(again, names) {
			return set, err
		}
		if err == nil {
			set.Close()
		}
	}
}

func openParts(names []string) (io.ReadCloser, error) {
	var set parts
	var readers []io.Reader
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			set.Close()
			return nil, fmt.Errorf("cannot read the audit log: %w", err)
		}
		set.files = append(set.files, f)
		readers = append(readers, f)
	}
	set.Reader = io.MultiReader(readers...)
	return &set, nil
}

// parts are the files of a log, as one text.
type parts struct {
	io.Reader
	files []*os.File
}

func (p *parts) Close() error {
	for _, f := range p.files {
		f.Close()
	}
	return nil
}

// Rotate says when the log is to go on in another file. It is called before the
// first Append.
func (l *Log) Rotate(r Rotation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rotation = r
}

// due tells whether the next line belongs into another file. One that has no line
// yet, or whose end is in doubt, is gone on with.
func (l *Log) due(now time.Time) bool {
	if l.end.Offset == 0 || len(l.torn) > 0 || l.unconfirmed || l.fault != nil || now.Before(l.retry) {
		return false
	}
	r := l.rotation
	return r.Size > 0 && l.end.Offset >= r.Size || r.Age > 0 && now.Sub(l.begun) >= r.Age
}

// rotate goes on in another file, and returns what the log is told if it cannot.
func (l *Log) rotate(now time.Time) (failed string) {
	if err := l.exchange(); err != nil {
		l.retry = now.Add(retryRotation)
		return fmt.Sprintf("the log goes on in the same file: cannot begin another: %v", err)
	}
	l.begun = now
	l.sweep()
	return ""
}

// exchange gives the file the next number, and its name to an empty one, in one
// step (renameat2(2), RENAME_EXCHANGE): there is a file of that name at any time,
// and whoever opens it meets its lock. The head of the old one is written before.
func (l *Log) exchange() (err error) {
	numbers, err := numbered(l.name)
	if err != nil {
		return err
	}
	next := uint64(1)
	if len(numbers) > 0 {
		next = numbers[len(numbers)-1] + 1
	}
	older := part(l.name, next)
	fresh, err := os.OpenFile(older, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fresh.Close()
			os.Remove(older)
			os.Remove(HeadFile(older))
		}
	}()
	if err := unix.Flock(int(fresh.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if err := unix.Fallocate(int(fresh.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, reserve); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	if err := l.writeHeadOf(older); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, older, unix.AT_FDCWD, l.name, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	_ = l.file.Truncate(l.end.Offset) // gives back the room that was kept
	l.file.Close()
	l.file = fresh
	l.end.Offset, l.end.Length = 0, 0
	l.allocated = reserve
	l.older = append(l.older, former{name: older})
	// There is no way back from here. A head that still names the older file's
	// end is understood at the next Open; the other way round is not.
	if dir, err := os.Open(filepath.Dir(l.name)); err == nil {
		_ = dir.Sync()
		dir.Close()
	}
	_ = writeHead(l.head, l.end)
	return nil
}

// writeHeadOf writes the head that the log has now as that of another file.
func (l *Log) writeHeadOf(file string) error {
	f, err := os.OpenFile(HeadFile(file), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := writeHead(f, l.end); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

// sweep removes the oldest files beyond those that are kept.
func (l *Log) sweep() {
	numbers, err := numbered(l.name)
	if err != nil || l.rotation.Keep == 0 {
		return
	}
	for _, n := range numbers[:max(0, len(numbers)-l.rotation.Keep)] {
		gone := part(l.name, n)
		os.Remove(gone)
		os.Remove(HeadFile(gone))
		if i := slices.IndexFunc(l.older, func(f former) bool { return f.name == gone }); i >= 0 {
			l.forgotten += i + 1
			l.older = slices.Clone(l.older[i+1:]) // a log may go on for years
		}
	}
}

// rotated looks after a rotation that was interrupted. It tells whether the file,
// which is empty, goes on where the youngest of the older ones ends.
func (l *Log) rotated(head *Head, size int64) (bool, error) {
	numbers, err := numbered(l.name)
	if err != nil || len(numbers) == 0 {
		return false, err
	}
	youngest := part(l.name, numbers[len(numbers)-1])
	fi, err := os.Lstat(youngest)
	if err != nil {
		return false, err
	}
	if fi.Mode().IsRegular() && fi.Size() == 0 { // it never got the log's name
		os.Remove(youngest)
		os.Remove(HeadFile(youngest))
		return false, nil
	}
	was, err := ReadHead(youngest)
	return size == 0 && head != nil && was != nil && err == nil && *was == *head, nil
}

// firstTime returns the time of a file's first line; now where there is none.
func firstTime(f *os.File) time.Time {
	var first struct {
		Time int64 `json:"time"`
	}
	line, err := readLine(bufio.NewReader(io.NewSectionReader(f, 0, MaxLine+1)))
	if err != nil || json.Unmarshal(line, &first) != nil || first.Time <= 0 {
		return time.Now()
	}
	return time.UnixMilli(first.Time)
}

// continued is the first line of a file that is not the log's first. Its link is
// to the last line of the one before.
func (l *Log) continued(id string) *Change {
	return NewChange(id, KindContinued, fmt.Sprintf("the lines up to number %d lie in an older file", l.end.Sequence))
}

// VerifyParts verifies a log with its older files, as one.
func VerifyParts(file string) (*Report, error) {
	for {
		names, err := Parts(file)
		if err != nil {
			return nil, err
		}
		rep, err := verifyParts(names)
		if again, aerr := Parts(file); aerr == nil && slices.Equal(again, names) {
			return rep, err
		}
	}
}

func verifyParts(names []string) (*Report, error) {
	var all *Report
	for i, name := range names {
		rep, err := VerifyFile(name)
		if err != nil {
			return nil, err
		}
		if i < len(names)-1 {
			rep.name(filepath.Base(name))
		}
		if all == nil {
			all = rep
		} else {
			all.join(rep)
		}
	}
	return all, nil
}

// name says which file the faults and notes are of.
func (r *Report) name(file string) {
	for i := range r.Faults {
		r.Faults[i].File = file
	}
	for i := range r.Notes {
		r.Notes[i] = file + ": " + r.Notes[i]
	}
}

// join adds the report of the next file.
func (r *Report) join(next *Report) {
	gap := ""
	switch from, to := r.Head, next.Begin; {
	case to.Sequence > from.Sequence:
		gap = fmt.Sprintf("line numbers %d to %d are missing before it, with their file", from.Sequence+1, to.Sequence)
	case to.Sequence < from.Sequence:
		gap = fmt.Sprintf("line number %d stands where %d belongs: a file was doubled, moved or inserted", to.Sequence+1, from.Sequence+1)
	case to.Hash != from.Hash:
		gap = "the file before it is not the one that it continues"
	}
	if gap != "" {
		r.Faults = append(r.Faults, Fault{Line: 1, Msg: gap})
	}
	r.Faults = append(r.Faults, next.Faults...)
	for _, n := range next.Notes {
		if !strings.HasSuffix(n, continues(next.Begin)) {
			r.Notes = append(r.Notes, n)
		}
	}
	r.Lines += next.Lines
	r.Segments += next.Segments
	if next.Lines > 0 {
		r.Open = next.Open
	}
	r.Head = next.Head
}

// continues is the note about a file whose beginning lies in another.
func continues(begin Head) string {
	return fmt.Sprintf("line 1: the lines up to number %d lie in an older file", begin.Sequence)
}
