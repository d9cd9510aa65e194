package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Follow calls line with every line whose number is greater than after, the
// present ones first and others as they come, each with its line feed. It begins
// with this sandbox's, unless who follows has seen a line and not the last one
// before these. Nothing is kept in memory for a slow reader: the files are the
// queue, and what is in one that was rotated away for good he does not get: the
// numbers tell. It returns nil once the log is closed and read to its end, or the first error of
// line or ctx.
func (l *Log) Follow(ctx context.Context, after uint64, line func([]byte) error) error {
	at := l.segment
	if after > 0 && after < l.before {
		at = 0
	}
	each := func(seq uint64, text []byte) error {
		if seq <= after {
			return nil // also what a file that was cut off still has
		}
		after = seq
		return line(text)
	}
	for i := 0; ; i++ {
		more, err := l.followFile(ctx, i, at, each)
		if !more || err != nil {
			return err
		}
		at = 0
	}
}

// followFile follows the i-th file since Open, from an offset to its end, and
// tells whether another came after it.
func (l *Log) followFile(ctx context.Context, i int, at int64, line func(uint64, []byte) error) (more bool, err error) {
	file, err := l.nth(i)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // it is not kept any more
	}
	if err != nil {
		return false, fmt.Errorf("cannot follow the audit log: %w", err)
	}
	defer file.Close()
	for {
		end, last, closed, changed := l.progress(i)
		to := end.Offset
		switch {
		case !last && l.former(i).cut:
			return true, nil // what it has yet is read with what was written behind
		case !last:
			fi, err := file.Stat()
			if err != nil {
				return false, fmt.Errorf("cannot follow the audit log: %w", err)
			}
			to = fi.Size()
		}
		ours := func(seq uint64, text []byte) error {
			if seq > end.Sequence {
				return nil // whoever wrote that, it was not the log
			}
			return line(seq, text)
		}
		if at, err = eachLine(file, at, to, ours); err != nil {
			return false, err
		}
		if !last || closed {
			return !last, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// former is a file that the log was in before.
type former struct {
	name string // empty: it has none any more
	cut  bool   // it is the same file, shorter
}

func (l *Log) former(i int) former {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i < l.forgotten {
		return former{}
	}
	return l.older[i-l.forgotten]
}

// nth opens the i-th file since Open for reading; it stays readable after Close.
func (l *Log) nth(i int) (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch i -= l.forgotten; {
	case i < 0:
		return nil, fs.ErrNotExist
	case i < len(l.older):
		return os.OpenFile(l.older[i].name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if l.closed {
		return l.reopen()
	}
	fd, err := unix.FcntlInt(l.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), l.name), nil
}

// reopen opens the last file of a log that is closed, unless another writer has
// begun another.
func (l *Log) reopen() (*os.File, error) {
	f, err := os.OpenFile(l.name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !os.SameFile(fi, l.last) {
		f.Close()
		return nil, errors.New("it went on in another file")
	}
	return f, nil
}

// progress tells how far the log is, and whether the i-th file is its last.
func (l *Log) progress(i int) (end Head, last, closed bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end, i == l.forgotten+len(l.older), l.closed, l.changed
}

// eachLine reads the whole lines between two offsets and returns how far it
// came. What is no line of ours is an unfinished one, and left out.
func eachLine(file *os.File, from, to int64, line func(uint64, []byte) error) (int64, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(file, from, to-from), 16<<10)
	for {
		text, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return to, nil
		}
		if err != nil {
			return to, fmt.Errorf("cannot follow the audit log: %w", err)
		}
		k, ok := parseLink(text)
		if !ok {
			continue
		}
		if err := line(k.seq, append(text, '\n')); err != nil {
			return to, err
		}
	}
}
