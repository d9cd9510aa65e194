package runtime

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/hooks"
	"nemoclaw/specs"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/seccomp"
)

// killTimeout is how long init may take to die of SIGKILL.
const killTimeout = 10 * time.Second

// CreateOptions are the flags of create and run, as runc's.
type CreateOptions struct {
	Bundle        string
	Policy        string // name or path; empty: see ChoosePolicy
	ConsoleSocket string
	PidfdSocket   string
	PidFile       string
	NoPivot       bool
	NoNewKeyring  bool
	PreserveFDs   int
}

// Create makes a container whose init waits for Start.
func (r *Runtime) Create(id string, o CreateOptions) error {
	n, err := r.create(id, o, true)
	if err != nil {
		return err
	}
	n.stdio.Close()
	return nil
}

// RunOptions are the flags that run has besides.
type RunOptions struct {
	CreateOptions
	Detach      bool
	Keep        bool // do not delete it when it ends
	NoSubreaper bool
}

// Run creates and starts a container and, unless detached, stays with it and
// returns its exit status.
func (r *Runtime) Run(id string, o RunOptions) (int, error) {
	var a *attendant
	if !o.Detach {
		a = newAttendant(!o.NoSubreaper)
	}
	n, err := r.create(id, o.CreateOptions, o.Detach)
	if err != nil {
		return -1, err
	}
	defer n.stdio.Close()
	manager, err := listenNotify(n.dir)
	if err == nil {
		defer manager.Close()
		err = r.releaseNew(id, n.ctr)
	}
	if err != nil {
		n.end()
		_ = r.forget(id)
		_ = n.ctr.Destroy()
		return -1, err
	}
	pid, err := n.process.Pid()
	if err != nil {
		return -1, err
	}
	if o.Detach {
		return 0, manager.forward(pid)
	}
	go func() { _ = manager.forward(pid) }() // it ends with the container at the latest
	status, err := a.wait(n.process, n.stdio)
	if err != nil {
		n.end()
	}
	if !o.Keep {
		if ferr := r.forget(id); err == nil {
			err = ferr
		}
		if derr := n.ctr.Destroy(); err == nil {
			err = derr
		}
	}
	return status, err
}

// newborn is a container between the steps of its creation.
type newborn struct {
	id      string
	root    string // the runtime's
	dir     string // state directory
	spec    *oci.Spec
	chosen  *Chosen
	host    specs.Host
	filters filters
	scopes  uint64 // of Landlock
	notify  bool   // a service manager waits for the program
	notes   []string
	ctr     *libcontainer.Container
	process *libcontainer.Process
	stdio   *stdio
	seal    *seal
	gateway chan attached
	inner   *os.File                 // nil until known
	made    func() (*os.File, error) // waits for the namespace that is being made; nil: none is
	joins   string                   // the state directory of the gateway that serves inner already; empty: none does
	log     string                   // the audit log
	outlive string                   // the path of a network namespace that was there before; empty: it is made now
}

// attached is how bringing up the gateway ended.
type attached struct {
	gateway *hooks.Gateway
	err     error
}

// create is the whole of DESIGN's create. Whatever fails, nothing is left.
func (r *Runtime) create(id string, o CreateOptions, detach bool) (_ *newborn, err error) {
	unlock, err := r.lock(id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	n := &newborn{id: id, root: r.Root, dir: r.Dir(id)}
	var undo undoing
	defer func() {
		if err != nil {
			undo.run()
		}
	}()

	var bundle string
	if n.spec, bundle, err = loadBundle(o.Bundle); err != nil {
		return nil, err
	}
	n.makeNetns()
	defer n.closeInner()
	io := stdioOptions{terminal: n.spec.Process.Terminal, detach: detach, consoleSocket: o.ConsoleSocket}
	if err := io.check(); err != nil {
		return nil, err
	}
	if n.chosen, err = ChoosePolicy(o.Policy, n.spec, r.Settings); err != nil {
		return nil, err
	}
	if err := n.edit(r); err != nil {
		return nil, err
	}
	if err := r.joinNamespace(n); err != nil {
		return nil, err
	}

	if n.ctr, err = r.newContainer(n, o); err != nil {
		return nil, err
	}
	undo.add(func() { _ = n.ctr.Destroy() })
	if err := r.makeStateDir(n); err != nil {
		return nil, err
	}
	undo.add(func() { _ = r.forget(id) })

	if n.process, err = newProcess(n.spec.Process, activated(), o.PreserveFDs); err != nil {
		return nil, err
	}
	n.process.Init = true
	program := n.spec.Process.Args
	swept := make(chan struct{})
	go func() { // while init is being set up
		defer close(swept)
		_, _ = r.Sweep() // what it could not do, the next one may
	}()
	defer func() { <-swept }()
	if !n.chosen.Unconfined {
		ruleset, err := newRuleset(n.host.LandlockABI, n.scopes)
		if err != nil {
			return nil, err
		}
		launcher, err := control.NewLauncher(n.dir)
		if err != nil {
			return nil, err
		}
		if n.seal, err = newSeal(n.host.LandlockABI, ruleset, launcher); err != nil {
			return nil, err
		}
		defer n.seal.Close()
		n.seal.wrap(n.process)
		if err := n.filters.whole(n.ctr.Config().Seccomp); err != nil {
			return nil, err
		}
		n.seal.holdBack(n.process, n.ctr.Config().Seccomp)
		if n.inner != nil && n.joins == "" {
			n.bring(r)
		}
	}
	if n.stdio, err = connect(n.process, n.ctr, io); err != nil {
		n.abort()
		return nil, err
	}
	undo.add(n.stdio.Close)
	if o.PidfdSocket != "" {
		socket, err := dialSocket(o.PidfdSocket)
		if err != nil {
			n.abort()
			return nil, err
		}
		defer socket.Close()
		n.process.PidfdSocket = socket
	}
	if err := n.ctr.Start(n.process); err != nil {
		n.abort()
		return nil, err
	}
	undo.add(n.end)
	if err := n.stdio.started(); err != nil {
		n.abort()
		return nil, err
	}
	if err := n.confine(r, bundle, program); err != nil {
		return nil, err
	}
	if o.PidFile != "" {
		if err := writePidFile(o.PidFile, n.process); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// edit decides whether the container can be confined, and edits its spec.
func (n *newborn) edit(r *Runtime) (err error) {
	// Behind the judgement of volumes: this one is ours.
	defer func() { n.notify = err == nil && offerNotify(n.spec, n.dir) }()
	if n.chosen.Unconfined {
		return nil
	}
	if n.host, err = Survey(n.spec, n.chosen, r.Settings, n.dir); err != nil {
		return err
	}
	if err := specs.Refuse(n.spec, n.chosen.Policy, n.host); err != nil {
		return Refused(err)
	}
	edits, denials, err := specs.Confine(n.spec, n.chosen.Policy, n.host)
	if err != nil {
		return err
	}
	specs.Apply(n.spec, edits)
	n.notes = specs.Say(edits)
	if n.chosen.Landlock.BestEffort && n.host.LandlockABI < landlock.MinABI {
		n.notes = append(n.notes, fmt.Sprintf("landlock: best effort: this kernel has ABI %d, files can be emptied by truncate(2)", n.host.LandlockABI))
	}
	n.scope()
	for _, c := range n.chosen.Seccomp.Allow {
		n.notes = append(n.notes, fmt.Sprintf("seccomp: the policy allows %s", c.Name))
	}
	if n.filters.second, err = seccomp.Compile(denials); err != nil || n.spec.Linux.Seccomp != nil {
		return err
	}
	n.filters.first, err = seccomp.CompileDefault(n.spec)
	return err
}

// scope has Landlock keep inside what shared namespaces do not.
func (n *newborn) scope() {
	if n.host.LandlockABI < landlock.ScopeABI {
		return
	}
	if specs.SharesProcesses(n.spec) {
		n.scopes |= landlock.ScopeSignal
		n.notes = append(n.notes, "landlock: the pid namespace is shared, signals reach only the program's own children")
	}
	if specs.SharesNetwork(n.spec) {
		n.scopes |= landlock.ScopeAbstract
		n.notes = append(n.notes, "landlock: the network namespace may be shared, abstract sockets reach only the program's own children")
	}
}

// Refused puts every reason on a line of its own, with the hints behind them.
func Refused(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("cannot confine the container: %w", err)
	}
	var why, hints []string
	for _, e := range joined.Unwrap() {
		why = append(why, e.Error())
		if ref, ok := errors.AsType[*specs.Refusal](e); ok && ref.Hint != "" {
			hints = append(hints, ref.Hint)
		}
	}
	return &hinted{fmt.Errorf("cannot confine the container: %s", strings.Join(why, "; ")), strings.Join(hints, "\n")}
}

// makeNetns makes a network namespace of the container's own, beside what is to
// be judged first. It is made here rather than by libcontainer, so that it can be
// fenced while init is being set up; within a user namespace it must belong to
// that, and is fenced once init has made it.
func (n *newborn) makeNetns() {
	if n.spec.Linux == nil {
		return
	}
	list := n.spec.Linux.Namespaces
	at := slices.IndexFunc(list, func(ns oci.LinuxNamespace) bool { return ns.Type == oci.NetworkNamespace })
	if at < 0 || list[at].Path != "" || slices.ContainsFunc(list, func(ns oci.LinuxNamespace) bool { return ns.Type == oci.UserNamespace }) {
		return
	}
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		ns, err := hooks.NewNetns()
		done <- result{ns, err}
	}()
	n.made = sync.OnceValues(func() (*os.File, error) {
		r := <-done
		return r.ns, r.err
	})
}

// joinNamespace settles which network namespace the container gets.
func (r *Runtime) joinNamespace(n *newborn) (err error) {
	if n.chosen.Unconfined {
		return nil
	}
	at := slices.IndexFunc(n.spec.Linux.Namespaces, func(ns oci.LinuxNamespace) bool { return ns.Type == oci.NetworkNamespace })
	ns := &n.spec.Linux.Namespaces[at]
	switch {
	case ns.Path != "":
		if err := n.takeOver(ns.Path, r.Settings.RunDir); err != nil {
			return err
		}
	case n.made == nil:
		return nil
	default:
		if n.inner, err = n.made(); err != nil {
			return err
		}
	}
	// By descriptor: what is fenced is what init joins, whatever lies at the
	// path by then.
	ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.inner.Fd())
	return nil
}

// takeOver opens a network namespace that exists, if nobody lives in it or if
// our gateway serves it already: what a program has open there is outside of
// every other gateway.
func (n *newborn) takeOver(path, runDir string) error {
	ns, err := hooks.OpenNetns(path)
	if err != nil {
		return fmt.Errorf("cannot use network namespace %s: %s", path, hideENOENT(err))
	}
	n.inner, n.outlive = ns, path // closed with n
	if err := notHost(ns); err != nil {
		return err
	}
	gateway, attach, err := hooks.FindGateway(runDir, ns)
	if err == nil {
		n.joins, n.log = gateway, attach.AuditLog
		return nil
	}
	if !errors.Is(err, hooks.ErrNoGateway) {
		return fmt.Errorf("cannot join network namespace %s: %s", path, hideENOENT(err))
	}
	pid, perr := hooks.Inhabitant(ns)
	if perr == nil && pid != 0 {
		perr = &hinted{fmt.Errorf("cannot join network namespace %s: process %d lives in it, and %w", path, pid, err),
			"the container that the namespace belongs to must be one of nemoclaw's, with the same rules"}
	}
	return perr
}

// notHost refuses the namespace that we run in ourselves, which is the engine's.
func notHost(ns *os.File) error {
	own, err := hooks.OpenNetns("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	same, err := hooks.SameNetns(ns, own)
	if err == nil && same {
		err = Refused(errors.Join(specs.HostNetwork))
	}
	return err
}

func (n *newborn) closeInner() {
	n.inner.Close()
	if n.made != nil {
		ns, _ := n.made()
		ns.Close() // it may not have been used
	}
}

func (r *Runtime) newContainer(n *newborn, o CreateOptions) (*libcontainer.Container, error) {
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       n.id,
		UseSystemdCgroup: r.SystemdCgroup,
		NoPivotRoot:      o.NoPivot,
		NoNewKeyring:     o.NoNewKeyring,
		Spec:             n.spec,
		RootlessEUID:     os.Geteuid() != 0,
	})
	if err != nil {
		return nil, err
	}
	return libcontainer.Create(r.Root, n.id, config)
}

// makeStateDir makes the sandbox's directory. libcontainer has just made sure
// that there is no such container below this root, so what lies there is a
// leftover of one whose delete never came: of a reboot, or of a killed engine.
func (r *Runtime) makeStateDir(n *newborn) error {
	if err := os.MkdirAll(r.Settings.RunDir, 0o711); err != nil {
		return fmt.Errorf("cannot make the state directory: %s", hideENOENT(err))
	}
	err := os.Mkdir(n.dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		if err = r.forget(n.id); err == nil {
			err = os.Mkdir(n.dir, 0o700)
		}
	}
	if err == nil {
		err = storeCgroups(n.dir, n.ctr)
	}
	if err != nil {
		return fmt.Errorf("cannot make the state directory: %w", err)
	}
	if n.notify {
		if err := os.Mkdir(filepath.Join(n.dir, notifyDir), 0o755); err != nil {
			return fmt.Errorf("cannot make the state directory: %w", err)
		}
	}
	if !n.chosen.Unconfined && !n.host.HasResolvConf {
		return os.WriteFile(n.host.ResolvConf, []byte("nameserver "+hooks.Nameserver+"\n"), 0o644)
	}
	return nil
}

// bring starts the gateway beside what libcontainer is doing.
func (n *newborn) bring(r *Runtime) {
	plan := hooks.Plan{Dir: n.dir, Program: r.Gateway, Uplink: n.chosen.Network.Uplink, Attach: n.attach(r)}
	inner := n.inner
	n.gateway = make(chan attached, 1)
	go func() {
		g, err := hooks.Bring(inner, plan)
		n.gateway <- attached{g, err}
	}()
}

func (n *newborn) attach(r *Runtime) control.Attach {
	servers, search := resolvers(n.spec)
	if dns := n.chosen.Network.DNS; len(dns) > 0 {
		servers = nil
		for _, a := range dns {
			servers = append(servers, a.String())
		}
	} else if servers = notLoopback(servers); len(servers) == 0 {
		servers = hostResolvers(hostResolvConf, behindTheStub)
	}
	return control.Attach{
		ID: n.id, Root: r.Root,
		PolicyName: n.chosen.Name, PolicyFile: n.chosen.Path, Policy: n.chosen.Source,
		AuditLog:    r.auditLog(n.id),
		Rotation:    control.Rotation{Size: r.Settings.Audit.MaxSize, Age: r.Settings.Audit.MaxAge, Keep: r.Settings.Audit.Keep},
		Nameservers: servers, EngineDNS: n.host.HasResolvConf && len(n.chosen.Network.DNS) == 0, Search: search,
		Hosts:     hosts(n.spec),
		Namespace: n.outlive,
		Notes:     n.notes,
	}
}

// auditLog is the log of id: ids are unique only within a root, so the file
// carries both.
func (r *Runtime) auditLog(id string) string {
	return filepath.Join(r.Settings.LogDir, filepath.Base(control.Dir("", r.Root, id))+".jsonl")
}

// notLoopback leaves out resolvers that only the container could reach, such as
// Docker's 127.0.0.11.
func notLoopback(servers []string) []string {
	return slices.DeleteFunc(slices.Clone(servers), func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err != nil || a.IsLoopback()
	})
}

// abort waits for a gateway that is being brought up and ends it.
func (n *newborn) abort() {
	if n.gateway == nil {
		return
	}
	if a := <-n.gateway; a.gateway != nil {
		a.gateway.Abort()
	}
	n.gateway = nil
}

// end kills init.
func (n *newborn) end() {
	_ = n.process.Signal(unix.SIGKILL)
	_, _ = n.process.Wait()
}

// confine does what can be done only now that init stands in its root: the
// rules, the program, the plan. program is what the launcher will become.
func (n *newborn) confine(r *Runtime, bundle string, program []string) error {
	pid, err := n.process.Pid()
	if err != nil {
		n.abort()
		return err
	}
	box := &control.Sandbox{
		ID: n.id, Root: r.Root, Bundle: bundle, Created: time.Now().UTC(), Status: "created", InitPID: pid,
		PolicyName: n.chosen.Name, PolicyFile: n.chosen.Path, PolicyDigest: n.chosen.Digest, Policy: string(n.chosen.Source),
		AuditLog: cmp.Or(n.log, r.auditLog(n.id)),
	}
	if box.InitStart, err = control.StartTime(pid); err != nil {
		n.abort()
		return fmt.Errorf("cannot confine the container: init is gone: %s", hideENOENT(err))
	}
	if n.chosen.Unconfined {
		return control.WriteSandbox(n.dir, box)
	}
	if n.inner == nil { // made by init, in a user namespace
		if n.inner, err = hooks.OpenNetns(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return fmt.Errorf("cannot confine the container: init is gone: %s", hideENOENT(err))
		}
		n.bring(r)
	}
	n.moveCable()
	kept, err := n.grantAll(pid, program)
	if err != nil {
		n.abort()
		return err
	}
	if box.Confined, err = json.Marshal(kept); err != nil {
		n.abort()
		return err
	}
	notes := append(slices.Clone(kept.Notes[len(n.notes):]), control.StoredNote+box.ConfinedDigest())
	written := make(chan error, 1)
	go func() { written <- control.WriteSandbox(n.dir, box) }()
	return cmp.Or(n.commit(pid, notes), <-written)
}

// grantAll fills the ruleset and seals the plan.
func (n *newborn) grantAll(pid int, program []string) (*confined, error) {
	uid, gid, err := hostUser(n.ctr, n.spec.Process)
	if err != nil {
		return nil, err
	}
	root, err := openContainerRoot(pid, uid, gid)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := root.ledAway(n.spec); err != nil {
		return nil, err
	}
	process := *n.spec.Process
	process.Args = program
	found, err := root.lookPath(&process)
	if err != nil {
		return nil, fmt.Errorf("unable to start container process: error during container init: %w", err)
	}
	image := specs.Image{Program: absolute(found, process.Cwd)}
	if image.Volumes, err = root.volumes(n.spec, n.host.Volumes); err != nil {
		return nil, err
	}
	if image.TopLevel, err = root.topLevel(); err != nil {
		return nil, err
	}
	rules := specs.Rules(n.spec, n.chosen.Policy, n.host, image)
	if n.notify {
		rules = append(rules, notifyRule)
	}
	granted, notes, err := n.seal.grant(root, rules)
	if err != nil {
		return nil, err
	}
	carves, err := n.carveOut(root, pid, granted, image)
	if err != nil {
		return nil, err
	}
	cwd := ""
	if len(carves) > 0 {
		if found, err = root.lookPath(&process); err != nil { // it may be hidden by now
			return nil, fmt.Errorf("unable to start container process: error during container init: %w", err)
		}
		if cwd, err = root.directory(process.Cwd); err != nil {
			return nil, err
		}
	}
	for _, c := range carves {
		if c.Listed {
			notes = append(notes, "mounts: "+c.String())
		}
	}
	if err := n.seal.finish(found, cwd, n.filters); err != nil {
		return nil, err
	}
	return &confined{ABI: n.host.LandlockABI, Scopes: n.scopes, Granted: granted, Writable: specs.Writable(rules), Carves: carves,
		First: encodeFilter(n.filters.first), Filter: encodeFilter(n.filters.second), Capabilities: specs.MayHold(n.chosen.Capabilities), Notes: append(slices.Clone(n.notes), notes...)}, nil
}

// carveOut makes the mounts that keep the policy's lists where the rules do not.
// It goes by what was granted under its real name.
func (n *newborn) carveOut(root *containerRoot, pid int, granted []landlock.Granted, image specs.Image) ([]specs.Carve, error) {
	var rules []landlock.Rule
	for _, g := range granted {
		rules = append(rules, landlock.Rule{Path: g.Path, Access: g.Access})
	}
	if err := root.linked(n.chosen.Policy, rules); err != nil {
		return nil, err
	}
	carves := specs.Carves(n.chosen.Policy, rules)
	if len(carves) == 0 {
		return nil, nil
	}
	volumes := specs.Visible(n.spec, n.host.Volumes)
	for i := range volumes {
		volumes[i].Destination = image.Volumes[i]
	}
	for _, c := range carves {
		if why := specs.Uncarvable(c, carves, n.chosen.Policy, n.spec, volumes); why != "" {
			return nil, fmt.Errorf("cannot keep %s apart: %s", c, why)
		}
	}
	return carves, root.carve(pid, carves, volumes)
}

func absolute(name, cwd string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(cwd, name)
}

// hostUser is the container's user as the host numbers it.
func hostUser(ctr *libcontainer.Container, p *oci.Process) (uid, gid int, err error) {
	config := ctr.Config()
	if uid, err = config.HostUID(int(p.User.UID)); err == nil {
		gid, err = config.HostGID(int(p.User.GID))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cannot tell the container's user: %w", err)
	}
	return uid, gid, nil
}

// moveCable moves the cable that the engine has plugged in by now, once the gateway
// stands, beside what else is done.
func (n *newborn) moveCable() {
	if n.gateway == nil {
		return // another container's, or none
	}
	up, done := n.gateway, make(chan attached, 1)
	n.gateway = done
	go func() {
		a := <-up
		if a.err != nil {
			a.err = fmt.Errorf("cannot fence the container's network: %w", a.err)
		} else if _, err := hooks.Connect(n.dir, n.inner, n.chosen.Network.Uplink, n.chosen.Network.Ingress); err != nil {
			a.err = fmt.Errorf("cannot move the container's network interfaces: %w", err)
		}
		done <- a
	}()
}

// commit waits for the gateway and makes it the container's.
func (n *newborn) commit(pid int, notes []string) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		n.abort()
		return fmt.Errorf("cannot hold the container's init: pidfd_open: %w", err)
	}
	init := os.NewFile(uintptr(pidfd), "init")
	defer init.Close()
	if n.joins != "" {
		return n.join(pid, init, notes)
	}
	a := <-n.gateway
	n.gateway = nil
	if a.err == nil {
		a.err = a.gateway.Commit(pid, init, n.seal.ruleset, notes)
	}
	if a.err != nil && a.gateway != nil {
		a.gateway.Abort()
	}
	return a.err
}

// join puts the container behind the gateway that serves its namespace.
func (n *newborn) join(pid int, init *os.File, notes []string) error {
	err := hooks.Join(n.dir, n.joins, &control.Join{
		Box: control.Box{ID: n.id, Root: n.root}, InitPID: pid,
		PolicyName: n.chosen.Name, PolicyFile: n.chosen.Path, Policy: n.chosen.Source,
		Notes: append(slices.Clone(n.notes), notes...),
	}, n.inner, init, n.seal.ruleset)
	if err != nil {
		return &hinted{err, "containers that share a network namespace need policies with the same egress and network"}
	}
	return nil
}

// undoing is what has to be undone, last first.
type undoing []func()

func (u *undoing) add(f func()) { *u = append(*u, f) }

func (u undoing) run() {
	for _, f := range slices.Backward(u) {
		f()
	}
}
