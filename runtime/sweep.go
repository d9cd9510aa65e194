package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/hooks"
)

// Sweep removes what dead sandboxes left in the directory of all: of creates
// that were killed, of containers whose gateway and engine were, of a reboot.
// What lives, what is being made and what an engine will still delete is left
// alone. It returns what it removed.
func (r *Runtime) Sweep() ([]string, error) {
	dir := r.Settings.RunDir
	try := func(name string) (func(), bool) {
		unlock, err := lockByte(dir, name, unix.F_OFD_SETLK)
		return unlock, err == nil
	}
	gone, err := hooks.Sweep(dir, try)
	entries, rerr := os.ReadDir(dir)
	if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return gone, errors.Join(err, fmt.Errorf("cannot sweep: %s", hideENOENT(rerr)))
	}
	for _, e := range entries {
		if !control.IsDir(e.Name()) || !e.IsDir() {
			continue // a gateway's, or not ours
		}
		unlock, ok := try(e.Name())
		if !ok {
			continue
		}
		if removed, serr := sweepContainer(filepath.Join(dir, e.Name())); removed {
			gone = append(gone, e.Name())
		} else {
			err = errors.Join(err, serr)
		}
		unlock()
	}
	return gone, err
}

// sweepContainer removes the directory of a container that is no more. One that
// its engine knows is not touched: its delete is to come.
func sweepContainer(dir string) (removed bool, err error) {
	if _, err := os.Stat(control.Gateway(dir)); err == nil {
		return false, nil // what hooks.Sweep has left there lives
	}
	s, err := control.ReadSandbox(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err != nil && !isOurs(dir) {
		return false, nil
	}
	if err == nil {
		if hooks.Runs(s.InitPID, s.InitStart) {
			return false, nil
		}
		if _, serr := os.Stat(filepath.Join(s.Root, s.ID)); !errors.Is(serr, fs.ErrNotExist) {
			return false, nil
		}
	}
	removeCgroups(dir)
	return true, os.RemoveAll(dir)
}

// isOurs reports whether there is nothing in dir but what create makes before it
// stores a Sandbox. libcontainer's directories may lie beside ours, and a
// container's id may be like the name of one of ours.
func isOurs(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		known := []string{control.CgroupsFile, control.GatewayLink, control.LauncherFile, notifyDir, resolvConf}
		return !slices.Contains(known, e.Name()) && !strings.HasPrefix(e.Name(), ".new-")
	})
}

// Repair starts the gateway of container id again if it was lost, and says
// whether it was.
func (r *Runtime) Repair(id string) (bool, error) {
	ctr, err := r.Load(id)
	if err != nil {
		return false, err
	}
	unlock, err := r.lock(id)
	if err != nil {
		return false, err
	}
	defer unlock()
	return r.repair(ctr.ID())
}

// repair does that for one who holds the lock, or who only executes in it.
func (r *Runtime) repair(id string) (bool, error) {
	s, _, p, err := r.sandbox(id)
	if err != nil || p.Unconfined {
		return false, err
	}
	lost, err := hooks.Revive(r.Gateway, r.Dir(id))
	if err != nil {
		return false, fmt.Errorf("cannot repair container %s: %w", id, err)
	}
	if !lost || s.Status != "started" {
		return lost, nil
	}
	inner, err := r.innerOf(id, s)
	if err != nil {
		return true, err
	}
	defer inner.Close()
	links, err := hooks.Connect(r.Dir(id), inner, p.Network.Uplink, p.Network.Ingress)
	if err == nil {
		err = hooks.Release(r.Gateway, r.Dir(id), inner, p.Network.Uplink, links)
	}
	if err != nil {
		return true, fmt.Errorf("cannot repair container %s: network: %w", id, err)
	}
	return true, nil
}

// innerOf opens the network namespace of a container's init.
func (r *Runtime) innerOf(id string, s *control.Sandbox) (*os.File, error) {
	inner, err := hooks.OpenNetns(fmt.Sprintf("/proc/%d/ns/net", s.InitPID))
	if err != nil {
		return nil, fmt.Errorf("container %s: its init is gone: %s", id, hideENOENT(err))
	}
	// Asked behind the open: another process that has init's pid by now has
	// another namespace, which is none of ours to seal.
	if start, err := control.StartTime(s.InitPID); err != nil || start != s.InitStart {
		inner.Close()
		return nil, fmt.Errorf("container %s: its init is gone", id)
	}
	return inner, nil
}
