package audit

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Somebody else may rotate, cut off, remove or write to the log while it is open:
// logrotate, an editor, an attacker. Before each line it is looked whether the
// file is the one of its name and ends where the last line did. If not, the log
// goes on where it is looked for, its chain carried on: what is lost is missing
// there, and a line tells what was found. Where it cannot go on nothing is
// written, and whoever asks is refused.

// maxFound bounds what is kept of that for Disturbed.
const maxFound = 20

// settle makes the end of the log the end of the file of its name.
func (l *Log) settle() error {
	var own, there unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &own); err != nil {
		return fmt.Errorf("cannot record: %w", err)
	}
	if err := unix.Lstat(l.name, &there); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot record: cannot find %s: %w", l.name, err)
	}
	size := l.end.Offset + int64(len(l.torn))
	if own.Dev != there.Dev || own.Ino != there.Ino {
		if err := l.replace(own.Nlink > 0, size); err != nil {
			return fmt.Errorf("cannot record: %w", err)
		}
	} else if own.Size != size {
		what := fmt.Sprintf("somebody else wrote %d bytes to the log behind line %d", own.Size-size, l.end.Sequence)
		if own.Size < size {
			what = fmt.Sprintf("somebody else cut the log off after %d of %d bytes: lines up to number %d are lost here", own.Size, size, l.end.Sequence)
			l.lost = true
			l.older = append(l.older, former{cut: true})
		}
		if err := l.resume(own.Size, what); err != nil {
			return fmt.Errorf("cannot record: %w", err)
		}
	}
	return l.keepHead()
}

// replace goes on in the file that has the log's name now, or in a new one. What
// was written of the old file is size bytes; kept tells whether it has another
// name.
func (l *Log) replace(kept bool, size int64) error {
	f, err := os.OpenFile(l.name, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := l.take(f); err != nil {
		f.Close()
		return err
	}
	what := fmt.Sprintf("somebody else removed the log: the lines up to number %d are lost", l.end.Sequence)
	old := ""
	if kept {
		old, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()))
		what = fmt.Sprintf("somebody else moved the log to %s: the lines up to number %d lie there", old, l.end.Sequence)
		if fi, err := l.file.Stat(); err == nil && fi.Size() == size {
			_ = l.file.Truncate(size) // gives back the room that was kept
		}
	}
	_ = unix.Fdatasync(int(l.file.Fd()))
	l.file.Close()
	l.file = f
	l.lost = l.lost || !kept
	l.older = append(l.older, former{name: old})
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return l.resume(fi.Size(), what)
}

// take makes sure that f is ours alone to write, and has the log's name.
func (l *Log) take(f *os.File) error {
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", l.name)
	}
	if err := lock(f, 0); err != nil {
		return fmt.Errorf("another gateway writes %s: %w", l.name, err)
	}
	was := l.file
	l.file = f
	named := l.named()
	l.file = was
	if !named {
		return fmt.Errorf("%s changes again and again", l.name)
	}
	return nil
}

// resume goes on at the end of the file, which has size bytes of which not all
// are ours.
func (l *Log) resume(size int64, what string) error {
	l.torn, l.allocated = nil, 0
	l.end.Offset = size
	if size == 0 {
		l.end.Length = 0
		l.begun = firstTime(l.file)
	}
	l.tell(what)
	return l.readTorn(size)
}

// keepHead opens the head anew if it was taken away.
func (l *Log) keepHead() error {
	own, err := l.head.Stat()
	if err != nil {
		return fmt.Errorf("cannot record: %w", err)
	}
	if there, err := os.Lstat(HeadFile(l.name)); err == nil && os.SameFile(own, there) {
		return nil
	}
	f, err := os.OpenFile(HeadFile(l.name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot record: cannot open the audit log's head: %w", err)
	}
	l.head.Close()
	l.head = f
	l.tell("somebody else took the log's head away")
	if err := f.Truncate(0); err != nil { // it may be longer
		return fmt.Errorf("cannot record: %w", err)
	}
	return nil
}

// tell has the next line say what was found.
func (l *Log) tell(what string) {
	l.untold = append(l.untold, what)
	if l.disturbed++; len(l.found) < maxFound {
		l.found = append(l.found, what)
	}
}

// findings are the lines about what was found and is not written yet.
func (l *Log) findings(id string) (lines []Entry) {
	if len(l.untold) == 0 {
		return nil
	}
	line := NewChange(id, KindRecovered, strings.Join(l.untold, "; "))
	line.SeverityID, line.StatusID = High, 2
	return []Entry{line}
}

// Check looks after the log, and writes down what it finds. Without a finding
// nothing is written.
func (l *Log) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	err := l.settle()
	if err == nil && len(l.untold) > 0 {
		err = l.append(nil)
	}
	if err != nil {
		l.fault = err
	}
	return err
}

// Disturbed tells how often somebody else was found to have changed the log
// since Open, and what was found first.
func (l *Log) Disturbed() (times int, found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.disturbed, append([]string{}, l.found...)
}
