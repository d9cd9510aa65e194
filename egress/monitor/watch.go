package monitor

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
)

const (
	// quiet is how long a file that is being written in place, or that is
	// gone, must stay as it is before it counts.
	quiet = limits.Quiet
	// pollEvery finds changes that inotify does not report: network file
	// systems, directories that are mounted over or are links further up. What
	// they revoke is cut within a second too.
	pollEvery = limits.Poll
)

// The events of a directory that may mean another policy (inotify(7)). A
// rename and the closing of a written file leave it whole: they take effect at
// once. After the others the file may be half written, and after those of
// another file in its directory too: Kubernetes renames the symbolic link ..data
// beside it, but somebody else may rename what he likes while ours is written.
const (
	wholeEvents = unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE
	otherEvents = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_ATTRIB
	goneEvents  = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_IGNORED | unix.IN_Q_OVERFLOW
)

// watcher calls changed after every possible change of a file, from one
// goroutine. It uses inotify(7) itself: the library for it does not report the
// closing of a file, without which a write in place could be read by halves.
type watcher struct {
	file    string
	inotify *os.File                  // nil: only the poll is left
	names   atomic.Pointer[[2]string] // the file's, and that of what it is a link to
	seen    string                    // what the poll saw last
	done    sync.WaitGroup
}

// watchPolicy reads the policy file again whenever it may have changed, and on
// every receive from reload.
func (m *Monitor) watchPolicy(ctx context.Context, reload <-chan os.Signal) *watcher {
	w := &watcher{file: m.attached.PolicyFile}
	if w.file == "" {
		return w // the built-in policy never changes
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		m.note(fmt.Sprintf("cannot watch the policy file: %v: it is polled", err))
	} else {
		w.inotify = os.NewFile(uintptr(fd), "inotify")
	}
	whole, other, beside := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	if w.inotify != nil {
		context.AfterFunc(ctx, func() { w.inotify.Close() })
		w.aim()
		w.done.Go(func() { w.read(whole, other, beside) })
	}
	w.done.Go(func() {
		w.loop(ctx, reload, whole, other, beside, func() { _, _ = m.reload() }) // told in the log and in Status
	})
	return w
}

func (w *watcher) wait() {
	if w != nil {
		w.done.Wait()
	}
}

// aim watches the file's directory, and the one that it is a link into. Both
// may be others than before.
func (w *watcher) aim() {
	if w.inotify == nil {
		return
	}
	dirs, real := []string{filepath.Dir(w.file)}, w.file
	if to, err := filepath.EvalSymlinks(w.file); err == nil {
		real = to
		dirs = append(dirs, filepath.Dir(real))
	}
	w.names.Store(&[2]string{filepath.Base(w.file), filepath.Base(real)})
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for _, dir := range dirs {
			// Where this fails the poll goes on.
			_, _ = unix.InotifyAddWatch(int(fd), dir, wholeEvents|otherEvents|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
		}
	})
}

// read sorts events until the descriptor is closed.
func (w *watcher) read(whole, other, beside chan<- struct{}) {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		at, others := events(buf[:n], *w.names.Load())
		if at&wholeEvents != 0 {
			wake(whole)
		}
		if at&(otherEvents|goneEvents) != 0 {
			wake(other)
		}
		if others != 0 {
			wake(beside)
		}
	}
}

// events joins the masks of the events in b, apart for the file, which has either
// of names, and for what is beside it: wd, mask, cookie and len of four bytes each, then a
// name of len bytes, padded with zeroes (inotify(7)).
func events(b []byte, names [2]string) (at, beside uint32) {
	for len(b) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(b[4:])
		next := min(unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:])), len(b))
		who, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:next], []byte{0})
		if string(who) == names[0] || string(who) == names[1] {
			at |= mask
		} else {
			beside |= mask
		}
		b = b[next:]
	}
	return at, beside
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake already
	}
}

func (w *watcher) loop(ctx context.Context, reload <-chan os.Signal, whole, other, beside <-chan struct{}, changed func()) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	settle := time.NewTimer(0) // the file may be another already than create read
	defer settle.Stop()
	settling := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-reload:
		case <-whole:
		case <-settle.C:
		case <-other:
			settle.Reset(quiet)
			settling = true
			continue
		case <-beside: // others may go on for ever: they put nothing off
			if !settling {
				settle.Reset(quiet)
				settling = true
			}
			continue
		case <-poll.C:
			w.aim()
			if w.look() && !settling {
				settle.Reset(quiet)
				settling = true
			}
			continue
		}
		settling = false
		w.look()
		changed()
		w.aim()
	}
}

// look reports whether the file is another than at the last look.
func (w *watcher) look() bool {
	now := "gone"
	var st unix.Stat_t
	if err := unix.Stat(w.file, &st); err == nil {
		now = fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	}
	was := w.seen
	w.seen = now
	return now != was
}
