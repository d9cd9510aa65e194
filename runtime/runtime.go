package runtime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/hooks"
	"nemoclaw/specs"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
	"nemoclaw/specs/settings"
)

// Runtime is one engine's runtime: its containers are those below Root.
type Runtime struct {
	Root          string // absolute; libcontainer's state
	SystemdCgroup bool
	Settings      *settings.Settings
	Gateway       string // absolute path of nemoclaw-gateway
}

// confined is what create stored for exec and for those who ask: what was
// granted then holds for the container's life, whatever defaults a newer
// nemoclaw has.
type confined struct {
	ABI      int                `json:"landlock_abi"`
	Scopes   uint64             `json:"scopes,omitempty"` // of the ruleset, LANDLOCK_SCOPE_*
	Granted  []landlock.Granted `json:"granted"`
	Carves   []specs.Carve      `json:"carves,omitempty"` // mounts inside of what was granted
	Writable []string           `json:"writable"`         // directories, as rules named them
	First    []byte             `json:"first,omitempty"`  // the first filter, if libcontainer loads none; struct sock_filter
	Filter   []byte             `json:"filter"`           // the second
	// Capabilities are the most that any process may hold, the joining ones too.
	Capabilities []string `json:"capabilities"`
	Notes        []string `json:"notes"` // what was done to the spec, and what was not granted
}

// Dir is the state directory of container id.
func (r *Runtime) Dir(id string) string { return control.Dir(r.Settings.RunDir, r.Root, id) }

// box names container id to its gateway.
func (r *Runtime) box(id string) control.Box { return control.Box{ID: id, Root: r.Root} }

// Load returns the container id.
func (r *Runtime) Load(id string) (*libcontainer.Container, error) {
	if id == "" {
		return nil, errors.New("container id cannot be empty")
	}
	return libcontainer.Load(r.Root, id)
}

// sandbox returns what create stored. Without it nothing can be told of how the
// container is confined, and nothing is done in it.
func (r *Runtime) sandbox(id string) (*control.Sandbox, *confined, *policy.Policy, error) {
	s, err := control.ReadSandbox(r.Dir(id))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cannot find what was stored of container %s at its create: %s", id, hideENOENT(err))
	}
	if s.PolicyName == unconfined {
		return s, nil, policy.Unconfined(), nil
	}
	c, err := decodeConfined(s.Confined)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cannot understand what was stored of container %s: %w", id, err)
	}
	p, err := policy.Parse(s.PolicyFile, []byte(s.Policy))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cannot use the policy that was stored of container %s:\n%w", id, err)
	}
	return s, c, p, nil
}

// decodeConfined reads what create stored. Nothing is taken on trust that the
// kernel would take for less than was meant.
func decodeConfined(b []byte) (*confined, error) {
	c := new(confined)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields() // a newer version stored it, and means something by it
	if err := dec.Decode(c); err != nil {
		return nil, err
	}
	if c.ABI < 1 {
		return nil, fmt.Errorf("landlock_abi: there is no ABI %d", c.ABI)
	}
	for _, g := range c.Granted {
		switch {
		case g.Path != path.Join("/", g.Path):
			return nil, fmt.Errorf("granted: %q is no absolute path", g.Path)
		case g.Access == 0 || g.Access&^landlock.Handled(c.ABI) != 0:
			return nil, fmt.Errorf("granted: %s: ABI %d cannot grant %s", g.Path, c.ABI, g.Access.Rights())
		}
	}
	_, err := c.filters()
	return c, err
}

// filters are those that the launcher loads.
func (c *confined) filters() (f filters, err error) {
	if len(c.First) > 0 {
		if f.first, err = decodeFilter(c.First); err != nil {
			return filters{}, err
		}
	}
	f.second, err = decodeFilter(c.Filter)
	return f, err
}

// hideENOENT says what happened to a file of ours without the words that Docker
// reads as "the program was not found".
func hideENOENT(err error) string {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		if errno, ok := p.Err.(unix.Errno); ok {
			return p.Path + ": " + unix.ErrnoName(errno)
		}
	}
	return err.Error()
}

// Start lets a created container's program run, once its layers 3 and 4 are
// verified.
func (r *Runtime) Start(id string) error {
	manager, ctr, err := r.start(id)
	if err != nil || manager == nil {
		return err
	}
	defer manager.Close()
	state, err := ctr.State()
	if err != nil {
		return err
	}
	return manager.forward(state.InitProcessPid)
}

// start does it under the container's lock, and returns the socket by which the
// program says that it is ready.
func (r *Runtime) start(id string) (_ *notify, _ *libcontainer.Container, err error) {
	unlock, err := r.lock(id)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	ready := r.preparing(id)
	defer func() { ready().inner.Close() }()
	ctr, err := r.Load(id)
	if err != nil {
		return nil, nil, err
	}
	status, err := ctr.Status()
	if err != nil {
		return nil, nil, err
	}
	switch status {
	case libcontainer.Created:
	case libcontainer.Stopped:
		return nil, nil, errors.New("cannot start a container that has stopped")
	case libcontainer.Running:
		return nil, nil, errors.New("cannot start an already running container")
	default:
		return nil, nil, fmt.Errorf("cannot start a container in the %s state", status)
	}
	manager, err := listenNotify(r.Dir(id))
	if err != nil {
		return nil, nil, err
	}
	if err := r.release(ctr, ready); err != nil {
		manager.Close()
		return nil, nil, err
	}
	return manager, ctr, nil
}

// prepared is what release begins with.
type prepared struct {
	box    *control.Sandbox // as create stored it
	policy *policy.Policy
	inner  *os.File // the container's network namespace; nil if it is unconfined
	links  []string // of its uplink: the cable has been moved
	err    error
}

// preparing prepares for release, beside what else is done.
func (r *Runtime) preparing(id string) (result func() prepared) {
	done := make(chan prepared, 1)
	go func() {
		var p prepared
		p.err = r.prepare(id, &p)
		done <- p
	}()
	return sync.OnceValue(func() prepared { return <-done })
}

func (r *Runtime) prepare(id string, p *prepared) (err error) {
	if p.box, _, p.policy, err = r.sandbox(id); err != nil || p.policy.Unconfined {
		return err
	}
	if p.inner, err = r.innerOf(id, p.box); err != nil {
		return fmt.Errorf("cannot start %w", err)
	}
	p.links, err = hooks.Connect(r.Dir(id), p.inner, p.policy.Network.Uplink, p.policy.Network.Ingress)
	if err != nil {
		return fmt.Errorf("cannot start container %s: network: %w", id, err)
	}
	return nil
}

// releaseNew is release for whoever has just created the container.
func (r *Runtime) releaseNew(id string, ctr *libcontainer.Container) error {
	unlock, err := r.lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	ready := r.preparing(id)
	defer func() { ready().inner.Close() }()
	return r.release(ctr, ready)
}

// release opens the last gate: the namespace is sealed and verified, the
// gateway decides, and only then init's fifo is opened. A gateway that was lost
// since create is started again. The caller holds the container's lock.
func (r *Runtime) release(ctr *libcontainer.Container, ready func() prepared) error {
	p := ready()
	if p.err != nil {
		return p.err
	}
	dir := r.Dir(ctr.ID())
	if !p.policy.Unconfined {
		if err := hooks.Release(r.Gateway, dir, p.inner, p.policy.Network.Uplink, p.links); err != nil {
			return fmt.Errorf("cannot start container %s: network: %w", ctr.ID(), err)
		}
	}
	p.box.Status = "started"
	if err := control.WriteSandbox(dir, p.box); err != nil {
		return err
	}
	return ctr.Exec()
}

// Delete removes a container that does not run; with force it is killed first.
// A container that is not there is libcontainer.ErrNotExist, after what was
// left of it is removed.
func (r *Runtime) Delete(id string, force bool) error {
	unlock, err := r.lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	ctr, err := r.Load(id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		if filepath.Base(id) == id && id != "." && id != ".." {
			_ = os.RemoveAll(filepath.Join(r.Root, id))
			removeCgroups(r.Dir(id))
			_ = r.forget(id)
		}
		return err
	}
	if err != nil {
		return err
	}
	status, err := ctr.Status()
	if err != nil {
		return err
	}
	switch {
	case force || status == libcontainer.Created:
		err = kill(ctr)
	case status != libcontainer.Stopped:
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", id, status)
	}
	if err != nil {
		return err
	}
	// In this order: while libcontainer knows the id no other create can have
	// put its own gateway and state in this one's place.
	if err := r.forget(id); err != nil {
		return err
	}
	return ctr.Destroy()
}

// storeCgroups tells in the state directory which cgroups the container has:
// libcontainer knows them once it has stored its own state, and a create that
// is killed before that has made them already.
func storeCgroups(dir string, ctr *libcontainer.Container) error {
	state, err := ctr.State()
	if err != nil {
		return err
	}
	b, err := json.Marshal(state.CgroupPaths)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, control.CgroupsFile), b, 0o600)
}

// removeCgroups removes them if nobody lives in them.
func removeCgroups(dir string) {
	var paths map[string]string
	b, err := os.ReadFile(filepath.Join(dir, control.CgroupsFile))
	if err == nil && json.Unmarshal(b, &paths) == nil {
		_ = cgroups.RemovePaths(paths)
	}
}

// forget ends the gateway, unless others are behind it, and removes the state
// directory; the audit log stays.
func (r *Runtime) forget(id string) error {
	dir := r.Dir(id)
	if err := hooks.Leave(dir, r.box(id)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// kill ends a container's init and waits until it has.
func kill(ctr *libcontainer.Container) error {
	state, err := ctr.State()
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(state.InitProcessPid, 0)
	if err != nil {
		_ = ctr.Signal(unix.SIGKILL) // whatever is left in its cgroup
		return nil
	}
	defer unix.Close(pidfd)
	if start, err := control.StartTime(state.InitProcessPid); err != nil || start != state.InitProcessStartTime {
		return nil
	}
	_ = ctr.Signal(unix.SIGKILL)
	if !hooks.Ended(pidfd, killTimeout) {
		return errors.New("container init still running")
	}
	return nil
}
