package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/opencontainers/runc/libcontainer"
	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/egress/control"
	"nemoclaw/specs"
	"nemoclaw/specs/policy"
)

// ExecOptions are the flags of exec, as runc's.
type ExecOptions struct {
	Detach        bool
	ConsoleSocket string
	PidfdSocket   string
	PidFile       string
	PreserveFDs   int
	IgnorePaused  bool
	SubCgroups    map[string]string
}

// Exec runs process in ctr, which Load returned, under the policy that was
// stored at its create and, unless detached, stays with it and returns its exit
// status.
func (r *Runtime) Exec(ctr *libcontainer.Container, process *oci.Process, o ExecOptions) (int, error) {
	id := ctr.ID()
	if err := executable(ctr, o.IgnorePaused); err != nil {
		return -1, err
	}
	if err := validProcess(process); err != nil {
		return -1, err
	}
	io := stdioOptions{terminal: process.Terminal, detach: o.Detach, consoleSocket: o.ConsoleSocket}
	if err := io.check(); err != nil {
		return -1, err
	}
	var a *attendant
	if !o.Detach {
		a = newAttendant(false)
	}
	_, stored, p, err := r.sandbox(id)
	if err != nil {
		return -1, err
	}
	program := process.Args
	if !p.Unconfined {
		specs.Apply(&oci.Spec{Process: process}, specs.ConfineExec(process, p, stored.Writable))
	}
	lp, err := newProcess(process, 0, o.PreserveFDs)
	if err != nil {
		return -1, err
	}
	lp.SubCgroupPaths = o.SubCgroups
	s, err := connect(lp, ctr, io)
	if err != nil {
		return -1, err
	}
	defer s.Close()
	if o.PidfdSocket != "" {
		socket, err := dialSocket(o.PidfdSocket)
		if err != nil {
			return -1, err
		}
		defer socket.Close()
		lp.PidfdSocket = socket
	}
	if !p.Unconfined {
		var opened closers
		defer func() { opened.Close() }()
		if err := r.join(id, ctr, stored, p, process, program, lp, &opened); err != nil {
			return -1, err
		}
	}
	if err := ctr.Run(lp); err != nil {
		return -1, err
	}
	if err := s.started(); err != nil {
		return -1, endExec(lp, err)
	}
	if o.PidFile != "" {
		if err := writePidFile(o.PidFile, lp); err != nil {
			return -1, endExec(lp, err)
		}
	}
	if o.Detach {
		return 0, nil
	}
	return a.wait(lp, s)
}

// executable reports why nothing can be executed in ctr now. Before start the
// cable may still be in the container's namespace, so not even then.
func executable(ctr *libcontainer.Container, ignorePaused bool) error {
	status, err := ctr.Status()
	switch {
	case err != nil:
		return err
	case status == libcontainer.Created:
		return errors.New("cannot exec in a container that has not been started: its network is not sealed yet")
	case status == libcontainer.Stopped:
		return errors.New("cannot exec in a stopped container")
	case status == libcontainer.Paused && !ignorePaused:
		return errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	return nil
}

// join puts the launcher before the program of a joining process, with the
// container's ruleset and the filters that create stored. What it
// opens is for the caller to close, also after an error.
func (r *Runtime) join(id string, ctr *libcontainer.Container, stored *confined, p *policy.Policy, process *oci.Process, program []string, lp *libcontainer.Process, opened *closers) error {
	f, err := stored.filters()
	if err == nil {
		err = f.whole(ctr.Config().Seccomp)
	}
	if err != nil {
		return err
	}
	state, err := ctr.State()
	if err != nil {
		return err
	}
	uid, gid, err := hostUser(ctr, process)
	if err != nil {
		return err
	}
	root, err := openContainerRoot(state.InitProcessPid, uid, gid)
	if err != nil {
		return err
	}
	opened.add(root.Close)
	if start, err := control.StartTime(state.InitProcessPid); err != nil || start != state.InitProcessStartTime {
		return fmt.Errorf("cannot exec in container %s: its init is gone", id)
	}
	ruleset, err := r.ruleset(id, state.InitProcessPid, root, stored, p)
	if err != nil {
		return err
	}
	launcher, err := control.LauncherName(r.Dir(id))
	if err != nil {
		return fmt.Errorf("cannot exec in container %s: %s", id, hideENOENT(err))
	}
	s, err := newSeal(stored.ABI, ruleset, launcher)
	if err != nil {
		return err
	}
	opened.add(s.Close)
	process.Args = program
	found, err := root.lookPath(process)
	if err != nil {
		return fmt.Errorf("unable to start container process: %w", err)
	}
	if err := replaceNull(lp, root, opened); err != nil {
		return err
	}
	s.wrap(lp)
	s.holdBack(lp, ctr.Config().Seccomp)
	return s.finish(found, "", f)
}

func endExec(lp *libcontainer.Process, err error) error {
	_ = lp.Signal(os.Kill)
	_, _ = lp.Wait()
	return err
}

// dialSocket connects to a unix socket of the engine's.
func dialSocket(path string) (*os.File, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*net.UnixConn).File()
}
