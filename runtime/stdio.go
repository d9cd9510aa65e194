package runtime

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/console"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// stdio is a process's input and output while we stay with it. Detached
// processes have none of this: they inherit ours, or their terminal goes to
// the engine through its console socket.
type stdio struct {
	closeAfterStart []io.Closer // our copies of what the process now holds
	copies          sync.WaitGroup
	host            console.Console // the user's terminal, raw meanwhile
	epoll           *console.Epoller
	console         *console.EpollConsole
	received        chan error // the terminal's other end has come, or will not
	closers         []io.Closer
}

// stdioOptions are how a process is connected.
type stdioOptions struct {
	terminal      bool
	detach        bool
	consoleSocket string
}

func (o stdioOptions) check() error {
	switch {
	case o.detach && o.terminal && o.consoleSocket == "":
		return errors.New("cannot allocate tty if nemoclaw will detach without setting console socket")
	case (!o.detach || !o.terminal) && o.consoleSocket != "":
		return errors.New("cannot use console socket if nemoclaw will not detach or allocate tty")
	}
	return nil
}

// connect prepares p's input and output before it is started.
func connect(p *libcontainer.Process, ctr *libcontainer.Container, o stdioOptions) (*stdio, error) {
	s := new(stdio)
	switch {
	case o.terminal && o.detach:
		return s, s.sendTerminal(p, o.consoleSocket)
	case o.terminal:
		return s, s.keepTerminal(p)
	case o.detach:
		p.Stdin, p.Stdout, p.Stderr = os.Stdin, os.Stdout, os.Stderr
		return s, nil
	}
	return s, s.pipes(p, ctr)
}

// sendTerminal lets init send its terminal to the engine's socket.
func (s *stdio) sendTerminal(p *libcontainer.Process, socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	p.ConsoleSocket = f
	s.closeAfterStart = append(s.closeAfterStart, f)
	return nil
}

// keepTerminal puts ourselves between the user's terminal and the process's.
func (s *stdio) keepTerminal(p *libcontainer.Process) error {
	host, err := userTerminal()
	if err != nil {
		return err
	}
	s.host = host
	if size, err := host.Size(); err == nil && p.ConsoleWidth == 0 && p.ConsoleHeight == 0 {
		p.ConsoleWidth, p.ConsoleHeight = size.Width, size.Height // before the program asks
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
	p.ConsoleSocket = theirs
	s.closeAfterStart = append(s.closeAfterStart, ours, theirs)
	s.received = make(chan error, 1)
	go func() { s.received <- s.receiveTerminal(ours) }()
	return nil
}

// userTerminal finds the terminal that we were started from, whichever of our
// streams still leads there.
func userTerminal() (console.Console, error) {
	for _, f := range []*os.File{os.Stderr, os.Stdout, os.Stdin} {
		if c, err := console.ConsoleFromFile(f); err == nil {
			return c, nil
		}
	}
	f, err := os.Open("/dev/tty")
	if err != nil {
		return nil, fmt.Errorf("cannot allocate a terminal: we have none ourselves: %w", err)
	}
	return console.ConsoleFromFile(f)
}

func (s *stdio) receiveTerminal(socket *os.File) error {
	master, err := receiveFile(socket)
	if err != nil {
		return fmt.Errorf("cannot receive the container's terminal: %w", err)
	}
	c, err := console.ConsoleFromFile(master)
	if err != nil {
		return err
	}
	if err := console.ClearONLCR(c.Fd()); err != nil {
		return err
	}
	if s.epoll, err = console.NewEpoller(); err != nil {
		return err
	}
	if s.console, err = s.epoll.Add(c); err != nil {
		return err
	}
	s.closers = append(s.closers, s.console)
	go s.epoll.Wait()
	go io.Copy(s.console, os.Stdin)
	s.copyTo(os.Stdout, s.console)
	if err := s.host.SetRaw(); err != nil {
		return fmt.Errorf("cannot make the terminal raw: %w", err)
	}
	return nil
}

func receiveFile(socket *os.File) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no descriptor came")
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// pipes gives the process pipes of its own, owned by the container's root, and
// copies between them and our streams.
func (s *stdio) pipes(p *libcontainer.Process, ctr *libcontainer.Container) error {
	config := ctr.Config()
	uid, err := config.HostRootUID()
	if err != nil {
		return err
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return err
	}
	i, err := p.InitializeIO(uid, gid)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, i.Stdin, i.Stdout, i.Stderr)
	for _, end := range []any{p.Stdin, p.Stdout, p.Stderr} {
		if c, ok := end.(io.Closer); ok {
			s.closeAfterStart = append(s.closeAfterStart, c)
		}
	}
	go func() {
		io.Copy(i.Stdin, os.Stdin)
		i.Stdin.Close()
	}()
	s.copyTo(os.Stdout, i.Stdout)
	s.copyTo(os.Stderr, i.Stderr)
	return nil
}

func (s *stdio) copyTo(w io.Writer, r io.ReadCloser) {
	s.copies.Go(func() {
		io.Copy(w, r)
		r.Close()
	})
}

// started is called when the process holds its ends.
func (s *stdio) started() error {
	var err error
	if s.received != nil {
		err = <-s.received
	}
	for _, c := range s.closeAfterStart {
		c.Close()
	}
	s.closeAfterStart = nil
	return err
}

func (s *stdio) resize() {
	if s.console != nil && s.host != nil {
		// The terminal may be gone already; nothing depends on its size.
		_ = s.console.ResizeFrom(s.host)
	}
}

// Close waits for what the process still wrote and gives the terminal back.
func (s *stdio) Close() {
	for _, c := range s.closeAfterStart {
		c.Close()
	}
	if s.console != nil && s.epoll != nil {
		_ = s.console.Shutdown(s.epoll.CloseConsole)
	}
	s.copies.Wait()
	for _, c := range s.closers {
		c.Close()
	}
	if s.host != nil {
		_ = s.host.Reset()
	}
}

// replaceNull gives a joining process the container's /dev/null in place of the
// host's, which engines pass and which could not be opened again under
// Landlock. runc does so for a container's first process only.
func replaceNull(p *libcontainer.Process, root *containerRoot, opened *closers) error {
	for _, stream := range []struct {
		f     any
		flags int
		set   func(*os.File)
	}{
		{p.Stdin, unix.O_RDONLY, func(f *os.File) { p.Stdin = f }},
		{p.Stdout, unix.O_WRONLY, func(f *os.File) { p.Stdout = f }},
		{p.Stderr, unix.O_WRONLY, func(f *os.File) { p.Stderr = f }},
	} {
		f, ok := stream.f.(*os.File)
		if !ok || !isNull(int(f.Fd())) {
			continue
		}
		null, err := root.null(stream.flags)
		if err != nil {
			return err
		}
		opened.add(func() { null.Close() })
		stream.set(null)
	}
	return nil
}

// null opens the container's null device, and nothing that a program may have
// put in its place: a named pipe would keep us waiting (fifo(7)).
func (root *containerRoot) null(flags int) (*os.File, error) {
	fd, err := root.open("/dev/null", unix.O_PATH, exact)
	if err == nil {
		defer unix.Close(fd)
		if !isNull(fd) {
			err = errors.New("it is something else")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the container's null device: %v", err)
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0)
}

// closers are what has to be closed when a process has been started.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c closers) Close() {
	for _, f := range c {
		f()
	}
}

// isNull reports whether fd is the null device, 1:3 (null(4)).
func isNull(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// writePidFile writes the process's pid for the engine, whole or not at all.
func writePidFile(file string, p *libcontainer.Process) error {
	pid, err := p.Pid()
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	_ = os.Remove(tmp) // of one of us that was killed here
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, file)
}
