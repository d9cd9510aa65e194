package hooks

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// GatewayProgram is the gateway's executable; it lies beside nemoclaw.
const GatewayProgram = "nemoclaw-gateway"

// Plan says how a sandbox's namespace is to be fenced and its gateway started.
type Plan struct {
	Dir     string // the container's state directory, which exists
	Program string // nemoclaw-gateway, absolute
	Uplink  string // network.uplink of the policy: auto, host, none or a path
	Attach  control.Attach
}

// Gateway is a monitor that has been started and not yet committed.
type Gateway struct {
	dir  string // its own state directory
	conn *control.Conn
}

// Bring fences the namespace inner and starts its gateway, and returns when
// connections queue at the gateway's listeners. The gateway has a state
// directory of its own beside the container's, which points to it: it may
// outlive the container. On an error nothing is left behind; but the fence of a
// namespace that ends with the container ends with it.
func Bring(inner *os.File, p Plan) (_ *Gateway, err error) {
	g := new(Gateway)
	if g.dir, err = makeGatewayDir(inner, p.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.Abort()
		}
	}()
	if g.conn, err = startMonitor(p.Program, g.dir); err != nil {
		return nil, err
	}
	uplink, err := chooseUplink(&p, inner) // while the monitor is starting
	if err != nil {
		return nil, err
	}
	defer uplink.Close()
	if err := Fence(inner); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && p.Attach.Namespace != "" { // it outlives us
			_ = unfence(inner)
		}
	}()
	if err := PinUplink(uplink, filepath.Join(g.dir, control.UplinkPin)); err != nil {
		return nil, err
	}
	return g, g.ask(control.ToMonitor{Attach: &p.Attach}, inner, uplink)
}

// makeGatewayDir makes the directory of a gateway for inner that the container
// of dir brings up. The link comes first, so that whatever ends us now, the
// container's delete finds the rest.
func makeGatewayDir(inner *os.File, dir string) (string, error) {
	ino, err := inode(inner)
	if err != nil {
		return "", err
	}
	gateway := control.GatewayDir(dir, ino)
	if err := point(dir, gateway); err != nil {
		return "", err
	}
	if err := os.Mkdir(gateway, 0o700); err != nil {
		return "", fmt.Errorf("cannot make the gateway's directory: %s: %s", gateway, reason(err))
	}
	return gateway, nil
}

// point notes in a container's directory which gateway it is behind.
func point(dir, gateway string) error {
	if err := os.Symlink(gateway, filepath.Join(dir, control.GatewayLink)); err != nil {
		return fmt.Errorf("cannot note the gateway of %s: %s", dir, reason(err))
	}
	return nil
}

func inode(ns *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return 0, fmt.Errorf("cannot identify a network namespace: fstat: %w", err)
	}
	return st.Ino, nil
}

// hasOwnUplink tells whether a sandbox of that network.uplink gets an uplink
// made for it, which the engine's interfaces are moved to. With "none" they only
// bring connections in.
func hasOwnUplink(mode string) bool { return mode == "auto" || mode == "none" }

// chooseUplink opens or makes the namespace that the gateway dials from.
func chooseUplink(p *Plan, inner *os.File) (*os.File, error) {
	switch {
	case hasOwnUplink(p.Uplink):
		p.Attach.OwnUplink = true
		return NewUplink()
	case p.Uplink == "host":
		p.Attach.HostUplink = true
		return OpenNetns("/proc/self/ns/net")
	}
	ns, err := OpenNetns(p.Uplink)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("it does not exist")
	}
	if err == nil {
		if err = leadsOut(ns, inner); err != nil {
			ns.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use network.uplink %s: %w", p.Uplink, err)
	}
	return ns, nil
}

// leadsOut refuses a namespace that the policy cannot mean as the way out of
// inner: the gateway would speak to itself, or for another sandbox.
func leadsOut(ns, inner *os.File) error {
	if same, err := SameNetns(ns, inner); err != nil || same {
		return cmp.Or(err, errors.New("it is the container's own network namespace"))
	}
	if err := notOurs(ns); err != nil {
		return fmt.Errorf("%w: write \"uplink: host\" to mean it", err)
	}
	if has, err := hasTable(ns); err != nil || has {
		return cmp.Or(err, errors.New("it is another sandbox's"))
	}
	if s, err := uplinkSide(ns); err == nil {
		s.Close()
		return errors.New("it is the uplink of another sandbox")
	}
	return nil
}

// startMonitor starts a monitor that outlives us: a session of its own, and
// nothing of ours open, since engines wait until the runtime's pipes close.
func startMonitor(program, dir string) (*control.Conn, error) {
	// What an engine left open in us by mistake must not stay open in it.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot start the gateway: close_range: %w", err)
	}
	ours, theirs, err := control.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(program, "monitor", dir)
	cmd.Dir = "/"
	// It starts beside init, on the same processors, and answers one worker, one
	// message after the other: threads that wake each other up would cost more
	// than they gain.
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("cannot start the gateway: %s cannot be executed (%s)", program, reason(err))
	}
	return ours, cmd.Process.Release()
}

// reason is err without the words that engines take for a missing program.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return "error"
}

func (g *Gateway) ask(msg control.ToMonitor, files ...*os.File) error {
	_, _, err := ask(g.conn, msg, files...)
	return err
}

func ask(conn *control.Conn, msg control.ToMonitor, files ...*os.File) (answer control.FromMonitor, got []*os.File, err error) {
	if err := conn.Send(msg, files...); err != nil {
		return answer, nil, fmt.Errorf("cannot speak to the gateway: %w", err)
	}
	if got, err = conn.Recv(&answer); err != nil {
		return answer, nil, fmt.Errorf("cannot hear the gateway: it ended: %w", err)
	}
	if answer.Fault != "" {
		control.CloseAll(got)
		return answer, nil, errors.New(answer.Fault)
	}
	return answer, got, nil
}

// Commit hands the container over: from now on the gateway lives as long as
// init, whose pidfd it holds, and keeps the ruleset for exec.
func (g *Gateway) Commit(initPID int, pidfd, ruleset *os.File, notes []string) error {
	defer g.conn.Close()
	return g.ask(control.ToMonitor{Commit: &control.Commit{InitPID: initPID, Notes: notes}}, pidfd, ruleset)
}

// Abort ends a gateway that was not committed: it undoes what it did when we
// are gone.
func (g *Gateway) Abort() {
	if g.conn != nil {
		g.conn.Close()
	}
	_ = Stop(g.dir)
}

// Connect moves what the engine has plugged into the container's namespace by
// now to the uplink. It is called when init waits, and again before start,
// since engines differ in when they plug in. It returns the uplink's links.
func Connect(dir string, inner *os.File, uplinkMode, ingress string) ([]string, error) {
	if !hasOwnUplink(uplinkMode) {
		return nil, nil
	}
	uplink, err := OpenNetns(filepath.Join(control.Gateway(dir), control.UplinkPin))
	if err != nil {
		return nil, err
	}
	defer uplink.Close()
	return Plug(inner, uplink, ingress)
}

// Release is the last step before the program runs: the namespace is sealed and
// verified, and the gateway knows of the uplink's links, which are Connect's. A
// gateway that was lost is started again (Revive).
func Release(program, dir string, inner *os.File, uplinkMode string, links []string) error {
	uplink, err := OpenNetns(filepath.Join(control.Gateway(dir), control.UplinkPin))
	if err != nil {
		return err
	}
	defer uplink.Close()
	ours, entered := uplink, hasOwnUplink(uplinkMode) && len(links) > 0
	switch {
	case uplinkMode == "none": // whatever was moved leads in only
		links = nil
	case !hasOwnUplink(uplinkMode):
		ours, links = nil, []string{uplinkMode}
	}
	// The gateway decides whatever comes, and nothing comes before both have
	// worked: neither need wait for the other.
	told := make(chan error, 1)
	go func() {
		_, err := Revive(program, dir)
		if err == nil {
			_, _, err = request(control.Gateway(dir), control.ToMonitor{Started: &control.Started{Links: links, Entered: entered}})
		}
		told <- err
	}()
	return errors.Join(Seal(inner, ours), <-told)
}

// Sealed says what is wrong with the seal of the container's namespace inner,
// whose state directory is dir; nil if it holds. It asks no gateway.
func Sealed(dir string, inner *os.File, uplinkMode string) error {
	if !hasOwnUplink(uplinkMode) {
		return Verify(inner, nil)
	}
	uplink, err := OpenNetns(filepath.Join(control.Gateway(dir), control.UplinkPin))
	if err != nil {
		return err
	}
	defer uplink.Close()
	return Verify(inner, uplink)
}

// request asks the living monitor of a gateway's directory.
func request(gateway string, msg control.ToMonitor, files ...*os.File) (control.FromMonitor, []*os.File, error) {
	conn, err := control.DialRuntime(gateway)
	if err != nil {
		return control.FromMonitor{}, nil, err
	}
	defer conn.Close()
	return ask(conn, msg, files...)
}

// Ruleset returns the filled Landlock ruleset of the container box, whose state
// directory is dir. The monitor keeps it: what was granted at create is what
// exec gets, whatever lies at those paths now.
func Ruleset(dir string, box control.Box) (*os.File, error) {
	_, files, err := request(control.Gateway(dir), control.ToMonitor{Ruleset: &control.Ruleset{Box: box}})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		control.CloseAll(files)
		return nil, fmt.Errorf("cannot get the container's ruleset: %d descriptors came", len(files))
	}
	return files[0], nil
}

// stopTimeout is how long a monitor may take to close the audit log's chain.
const stopTimeout = 3 * time.Second

// Stop ends the monitor of a gateway's directory, if it is still there, and
// removes what it cannot remove itself, the directory with it. It may be called
// again.
func Stop(gateway string) error {
	err := stopMonitor(gateway)
	if err == nil {
		err = giveBack(gateway)
	}
	if uerr := Unpin(filepath.Join(gateway, control.UplinkPin)); err == nil {
		err = uerr
	}
	removeCgroup(filepath.Base(gateway))
	if err != nil {
		return err
	}
	if err := os.RemoveAll(gateway); err != nil {
		return err
	}
	sweepReader(filepath.Dir(gateway))
	return nil
}

// giveBack returns the links that a monitor which was killed did not, if their
// namespace is still there.
func giveBack(gateway string) error {
	attach, err := control.ReadAttach(gateway)
	if err != nil || attach.Namespace == "" || !attach.OwnUplink {
		return nil // there is nothing to be given back
	}
	inner, err := OpenNetns(attach.Namespace)
	if err != nil {
		return nil // its owner has removed it
	}
	defer inner.Close()
	if ino, err := inode(inner); err != nil || control.GatewayDir("", ino) != filepath.Ext(gateway) {
		return nil // it is another by now
	}
	uplink, err := OpenNetns(filepath.Join(gateway, control.UplinkPin))
	if err != nil {
		return nil // it was unpinned before
	}
	defer uplink.Close()
	return Return(inner, uplink)
}

// sweepReader removes what the reader of denials has left if this was the last
// sandbox. Its monitor does so itself, unless it was killed.
func sweepReader(runDir string) {
	if _, err := os.Lstat(filepath.Join(runDir, control.DenialsSocket)); err != nil {
		return
	}
	var patience time.Duration
	if left, err := control.Sandboxes(runDir); err == nil && len(left) <= 1 {
		patience = readerEnd
	}
	if control.SweepReader(runDir, patience) {
		removeCgroup("denials")
	}
}

// readerEnd is how long a reader of denials may take to notice that it is alone.
const readerEnd = 500 * time.Millisecond

// removeCgroup removes what a monitor that was killed could not: the cgroup
// called name that it made for itself, and the parent of all of them with its
// last child. A directory that is still in use stays.
func removeCgroup(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/nemoclaw/", "/sys/fs/cgroup/*/nemoclaw/"} {
		left, _ := filepath.Glob(pattern + name)
		for _, place := range left {
			if os.Remove(place) == nil {
				_ = os.Remove(filepath.Dir(place))
			}
		}
	}
}

// stopMonitor signals through a pidfd, after the process was told apart from
// one that merely has the same pid by now.
func stopMonitor(dir string) error {
	m, err := control.ReadMonitor(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot stop the gateway: %w", err)
	}
	pidfd, err := unix.PidfdOpen(m.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot stop the gateway: pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	if start, err := control.StartTime(m.PID); err != nil || start != m.Start {
		return nil
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(pidfd, signal, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot stop the gateway: pidfd_send_signal: %w", err)
		}
		if Ended(pidfd, stopTimeout) {
			return nil
		}
	}
	return fmt.Errorf("cannot stop the gateway: process %d does not end", m.PID)
}

// Ended waits until the process of pidfd has ended (pidfd_open(2): readable) and
// reports whether it did within timeout.
func Ended(pidfd int, timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); ; {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(left, 0).Milliseconds()))
		if n > 0 {
			return true
		}
		if err != unix.EINTR && left <= 0 {
			return false
		}
	}
}
