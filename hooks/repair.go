package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// A survivor is a container behind a gateway whose init lives.
type survivor struct {
	dir string
	*control.Sandbox
}

// survivors are the containers behind a gateway, by what is stored of them, but
// for the one of that state directory.
func survivors(gateway, but string) ([]survivor, error) {
	runDir := filepath.Dir(gateway)
	entries, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list sandboxes: %w", err)
	}
	var found []survivor
	for _, e := range entries {
		dir := filepath.Join(runDir, e.Name())
		// The link first: what is stored is much to read.
		if at, err := os.Readlink(control.Gateway(dir)); err != nil || at != gateway || dir == but {
			continue
		}
		if s, err := control.ReadSandbox(dir); err == nil && Runs(s.InitPID, s.InitStart) {
			found = append(found, survivor{dir, s})
		}
	}
	return found, nil
}

// answers reports whether the monitor of a gateway's directory does. That
// somebody listens is not enough: a process that the monitor was about to start
// when it was killed does, until it becomes another program.
func answers(gateway string) bool {
	conn, err := control.DialRuntime(gateway)
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.Send(control.ToMonitor{Ruleset: new(control.Ruleset)}); err != nil {
		return false
	}
	var answer control.FromMonitor
	files, err := conn.Recv(&answer)
	control.CloseAll(files)
	return err == nil // even if it is that no such container is known
}

// Revive starts a monitor in the place of one that was lost, for the containers
// that are behind the gateway of dir, a container's state directory, and reports
// whether it was needed. The namespaces are those that are recorded, the fence
// must stand as it was left, decisions and names are those that were stored.
// Nothing leaves before Release.
func Revive(program, dir string) (bool, error) {
	gateway, err := os.Readlink(control.Gateway(dir))
	if err != nil {
		return false, fmt.Errorf("cannot find the gateway of %s: %s", dir, reason(err))
	}
	if answers(gateway) {
		return false, nil
	}
	unlock, err := lockDir(gateway)
	if err != nil {
		return false, err
	}
	defer unlock()
	if answers(gateway) { // somebody else was faster
		return false, nil
	}
	if err := revive(program, gateway); err != nil {
		return false, fmt.Errorf("cannot start the gateway again: %w", err)
	}
	return true, nil
}

func revive(program, gateway string) error {
	alive, err := survivors(gateway, "")
	if err != nil {
		return err
	}
	if len(alive) == 0 {
		return errors.New("no container behind it runs")
	}
	attach, err := control.ReadAttach(gateway)
	if err != nil {
		return fmt.Errorf("what it was told is lost: %s", reason(err))
	}
	inner, err := openInner(gateway, alive[0].Sandbox)
	if err != nil {
		return err
	}
	defer inner.Close()
	if err := fenced(inner); err != nil {
		return err
	}
	uplink, err := OpenNetns(filepath.Join(gateway, control.UplinkPin))
	if err != nil {
		return fmt.Errorf("its uplink is lost: %s", reason(err))
	}
	defer uplink.Close()
	if err := stopMonitor(gateway); err != nil { // one that lives and does not answer
		return err
	}
	conn, err := startMonitor(program, gateway)
	if err != nil {
		return err
	}
	defer conn.Close() // ends it again, if it was not committed
	attach.Notes = []string{"the gateway was lost and is started again"}
	if _, _, err := ask(conn, control.ToMonitor{Attach: attach}, inner, uplink); err != nil {
		return err
	}
	for i, c := range alive {
		box := control.Box{ID: c.ID, Root: c.Root}
		pidfd, err := holdInit(c.Sandbox)
		if err != nil {
			return err
		}
		defer pidfd.Close()
		if i == 0 {
			_, _, err = ask(conn, control.ToMonitor{Commit: &control.Commit{InitPID: c.InitPID, Again: &box}}, pidfd)
		} else {
			_, _, err = request(gateway, control.ToMonitor{Join: &control.Join{Box: box, InitPID: c.InitPID, Again: true}}, inner, pidfd)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openInner opens the network namespace that a gateway serves, by way of one of
// its containers.
func openInner(gateway string, s *control.Sandbox) (*os.File, error) {
	inner, err := OpenNetns(fmt.Sprintf("/proc/%d/ns/net", s.InitPID))
	if err != nil {
		return nil, fmt.Errorf("the init of %s is gone: %s", s.ID, reason(err))
	}
	ino, err := inode(inner)
	if start, serr := control.StartTime(s.InitPID); err == nil && (serr != nil || start != s.InitStart) {
		err = fmt.Errorf("the init of %s is gone", s.ID)
	}
	if err == nil && !strings.HasSuffix(gateway, control.GatewayDir("", ino)) {
		err = fmt.Errorf("container %s is in another network namespace than the gateway's", s.ID)
	}
	if err != nil {
		inner.Close()
		return nil, err
	}
	return inner, nil
}

// holdInit opens a pidfd of a container's init, and of no later process.
func holdInit(s *control.Sandbox) (*os.File, error) {
	fd, err := unix.PidfdOpen(s.InitPID, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot hold the init of %s: pidfd_open: %w", s.ID, err)
	}
	f := os.NewFile(uintptr(fd), "init")
	if start, err := control.StartTime(s.InitPID); err != nil || start != s.InitStart {
		f.Close()
		return nil, fmt.Errorf("the init of %s is gone", s.ID)
	}
	return f, nil
}

// lockDir keeps other processes from doing the same for a directory until
// unlock is called.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %s", dir, reason(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: flock: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// Sweep removes below runDir what nobody else will: gateways that have neither
// a monitor nor a container that runs, with their uplinks, so that no interface
// of a dead sandbox answers for an address that the engine has given to another
// one. try takes the lock of the container whose directory has a name, or
// reports that somebody is at work with it; such are left alone, and so is
// whatever lives. It returns the names of what it removed.
func Sweep(runDir string, try func(name string) (unlock func(), ok bool)) (gone []string, err error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot sweep %s: %w", runDir, err)
	}
	for _, e := range entries {
		container, isGateway := control.CutGateway(e.Name())
		if !isGateway || monitorRuns(filepath.Join(runDir, e.Name())) {
			continue
		}
		unlock, ok := try(container)
		if !ok {
			continue
		}
		removed, serr := sweepGateway(filepath.Join(runDir, e.Name()))
		unlock()
		if removed {
			gone = append(gone, e.Name())
		}
		err = errors.Join(err, serr)
	}
	return gone, err
}

func sweepGateway(gateway string) (removed bool, err error) {
	if monitorRuns(gateway) {
		return false, nil // since we looked
	}
	if alive, err := survivors(gateway, ""); err != nil || len(alive) > 0 {
		return false, err // to be repaired
	}
	return true, Stop(gateway)
}

// monitorRuns reports whether the process that announced itself in a gateway's
// directory does, whether or not it answers.
func monitorRuns(gateway string) bool {
	m, err := control.ReadMonitor(gateway)
	return err == nil && Runs(m.PID, m.Start)
}

// Runs reports whether the process that had the number pid at its start, in
// clock ticks since boot, has not ended. A zombie has.
func Runs(pid int, start uint64) bool {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pidfd)
	now, err := control.StartTime(pid)
	return err == nil && now == start && !Ended(pidfd, 0)
}
