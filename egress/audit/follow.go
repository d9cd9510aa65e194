package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Follow calls line with every line of this sandbox whose number is greater
// than after, the present ones first and others as they come, each with its
// line feed. Nothing is kept in memory for a slow reader: the file is the
// queue. It returns nil once the log is closed and read to its end, or the
// first error of line or ctx.
func (l *Log) Follow(ctx context.Context, after uint64, line func([]byte) error) error {
	l.mu.Lock()
	fd, err := unix.FcntlInt(l.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cannot follow the audit log: %w", err)
	}
	file := os.NewFile(uintptr(fd), l.name) // stays readable after Close
	defer file.Close()
	for at := l.segment; ; {
		end, closed, changed := l.progress()
		if at, err = eachLine(file, at, end.Offset, after, line); err != nil {
			return err
		}
		if closed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Log) progress() (end Head, closed bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end, l.closed, l.changed
}

// eachLine reads the whole lines between two offsets and returns how far it
// came. What is no line of ours is an unfinished one, and left out.
func eachLine(file *os.File, from, to int64, after uint64, line func([]byte) error) (int64, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(file, from, to-from), 16<<10)
	for {
		text, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return to, nil
		}
		if err != nil {
			return to, fmt.Errorf("cannot follow the audit log: %w", err)
		}
		if k, ok := parseLink(text); !ok || k.seq <= after {
			continue
		}
		if err := line(append(text, '\n')); err != nil {
			return to, err
		}
	}
}
