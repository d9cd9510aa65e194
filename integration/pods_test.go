package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// mate is a box whose container shares b's network namespace, state and logs,
// as the second container of a pod does. Its policy is a file of its own, which
// says the same.
func (b *box) mate() *box {
	b.t.Helper()
	c := newBox(b.t)
	c.pod = true
	for _, name := range []string{"run", "log"} {
		dir, err := filepath.EvalSymlinks(b.path(name))
		c.must(err)
		c.must(os.Remove(c.path(name)))
		c.must(os.Symlink(dir, c.path(name)))
	}
	c.settings("")
	text, err := os.ReadFile(b.path("policy.yaml"))
	c.must(err)
	c.policy(string(text))
	c.netns(fmt.Sprintf("/proc/%d/ns/net", b.initPID()))
	return c
}

// Containers of a pod have one gateway, which tells them apart; each has its
// own layers 1 and 2.
func TestPodSharesOneGateway(t *testing.T) {
	e := newEarth(t)
	b, first := e.sandbox(allowed...)
	c := b.mate()
	c.policy("filesystem: {read_write: [/data]}\n" + e.policy(e.Uplink(), allowed...))
	c.mkdir("bundle/rootfs/data")
	second := c.up()

	if b.monitor() != c.monitor() {
		t.Errorf("there are two monitors: %d and %d", b.monitor(), c.monitor())
	}
	for _, k := range []struct {
		*talk
		box *box
	}{{first, b}, {second, c}, {b.exec(), b}, {c.exec(), c}} {
		k.want("ok hello", "dial echo.good.example:7000 hello")
		k.want("ECONNRESET", "dial echo.evil.example:7000 hello")
		k.want("EACCES", "read /root/secret")
	}
	b.mkdir("bundle/rootfs/data")
	first.want("EACCES", "create /data/mine")
	second.want("ok", "create /data/mine")
	c.mkdir("bundle/rootfs/sandbox")
	second.want("EACCES", "create /sandbox/mine")
	// They share the namespace, and reach each other in it.
	second.want("ok", "hold tcp 127.0.0.1:8080")
	first.want("ok hello", "dial 127.0.0.1:8080")
	// What has no address of the network is not for those who came to join.
	first.want("ok", "hold unix @first")
	second.want("EPERM", "unix unix @first")

	whose := map[string]int{}
	for _, l := range b.audit() {
		if l.More.Verdict == "allow" || l.More.Verdict == "refuse" {
			whose[l.More.Verdict+" "+l.Actor.Process.Container.UID]++
		}
	}
	for _, id := range []string{b.id, c.id} {
		if whose["allow "+id] != 2 || whose["refuse "+id] != 2 {
			t.Errorf("the log tells of these containers: %v", whose)
		}
	}
	if got := b.ctl("list"); !strings.Contains(got.stdout, "behind "+b.id) {
		t.Errorf("list does not tell whose gateway it is: %s", got)
	}
	// A decision for one is a decision for both.
	if got := b.ctl("approve", c.id, "echo.evil.example:7000"); got.code != 0 {
		t.Fatalf("approve: %s", got)
	}
	if got := first.ask("dial echo.evil.example:7000 hello"); !strings.HasPrefix(got, "ECONNRESET") {
		t.Errorf("an approval overrides the check of private addresses: %s", got)
	}
	if l := b.audit(); !slices.ContainsFunc(l, func(l line) bool { return l.More.Reason == "private-address" }) {
		t.Error("the approval was not in force for the first container")
	}
}

// The gateway lives as long as any container behind it, whichever ends first.
func TestPodOutlivesItsFirstContainer(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(b *box)
	}{
		{"deleted", func(b *box) {
			if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
				b.t.Fatalf("delete: %s", got)
			}
		}},
		{"killed, and deleted by nobody", func(b *box) { kill(b.t, b.initPID()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEarth(t)
			b, _ := e.sandbox(allowed...)
			other := b.mate()
			second := other.up()
			c.end(b)
			other.await("the first one's end", func(l line) bool { return l.More.Kind == "left" })
			second.want("ok hello", "dial echo.good.example:7000 hello")
			other.exec().want("ok hello", "dial echo.good.example:7000 hello")
			third := other.mate()
			third.up().want("ok hello", "dial echo.good.example:7000 hello")
			// Its id comes again when its log is nobody's any more.
			if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
				t.Fatalf("delete: %s", got)
			}
			if _, got := b.create(); got.code == 0 || !strings.Contains(got.stderr, "another gateway writes it") {
				t.Errorf("create: %s", got)
			}
			second.want("ok hello", "dial echo.good.example:7000 hello")
			pidfd, err := unix.PidfdOpen(other.monitor(), 0)
			other.must(err)
			defer unix.Close(pidfd)
			for _, last := range []*box{third, other} {
				if got := last.nemoclaw(nil, "delete", "--force", last.id); got.code != 0 {
					t.Fatalf("delete: %s", got)
				}
			}
			if !ended(pidfd) {
				t.Error("the gateway outlives its last container")
			}
			b.up().want("ok hello", "dial echo.good.example:7000 hello")
		})
	}
}

// Containers that come and go behind a gateway, as one that crashes again and
// again does for months, leave nothing with it.
func TestPodLeavesNothingBehind(t *testing.T) {
	e := newEarth(t)
	b, _ := e.sandbox(allowed...)
	c := b.mate()
	round := func() {
		t.Helper()
		c.up().want("ok hello", "dial echo.good.example:7000 hello")
		c.exec().want("EPERM", "ptrace 1")
		if got := c.nemoclaw(nil, "delete", "--force", c.id); got.code != 0 {
			t.Fatalf("delete: %s", got)
		}
	}
	files := func() string {
		var names []string
		for _, pattern := range []string{b.gatewayDir() + "/*", b.path("run/*"), b.path("log/*")} {
			found, _ := filepath.Glob(pattern)
			names = append(names, found...)
		}
		return strings.Join(names, " ")
	}
	round()
	before, held := files(), descriptors(t, b.monitor())
	for range 10 {
		round()
	}
	waitFor(t, func() bool { return descriptors(t, b.monitor()) <= held+2 }) // an operator's that just asked
	if now := files(); now != before {
		t.Errorf("there are the files %s, before %s", now, before)
	}
}

// Whoever joins has layers 1 and 2 of its own to the last carve-out, in its first
// process and in exec, and what they refuse is in the one log under its name.
func TestPodConfinesEachAlone(t *testing.T) {
	board := auditing(t)
	e := newEarth(t)
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), allowed...))
	project := func(b *box) { b.tree(filepath.Join(b.rootfs(), "project"), ".git/config", ".env", "src/main") }
	project(b)
	board.on(b)
	first := b.up()
	c := b.mate()
	project(c)
	c.policy("filesystem: {read_write: [/project], read_only: [/project/.git/config], deny: [/project/.env]}\nseccomp: {deny: [getrandom]}\n" + e.policy(e.Uplink(), allowed...))
	second := c.up()

	for _, k := range []*talk{first, b.exec()} { // whose policy says nothing of it
		k.want("ok kept", "read /project/.env")
		k.want("EACCES", "write /project/src/main")
		k.want("ok", "sys 318 0 0 0 0 0") // getrandom(2)
	}
	for _, k := range []*talk{second, c.exec()} {
		k.want("ok", "write /project/src/main")
		k.want("ok kept", "read /project/.git/config")
		k.want("EROFS", "write /project/.git/config")
		k.want("EBUSY", "rename /project/.git /project/.moved")
		if got := k.ask("read /project/.env"); got != "ok" { // empty
			t.Errorf("%s: what is hidden reads %s", k.name, got)
		}
		k.want("EPERM", "sys 318 0 0 0 0 0")
		k.want("EACCES", "read /root/secret")
	}
	for _, box := range []*box{b, c} {
		if got := box.ctl("status", box.id); got.code != 0 {
			t.Errorf("status: %s", got)
		}
	}
	seen := map[string]int{}
	c.awaitDenial("two of each of the second's, and one of each of the first's", func(d *denied) bool {
		seen[d.Device.UID+" "+d.what()]++
		return seen[c.id+" getrandom"] == 2 && seen[c.id+" read_file /root/secret"] == 2 && seen[b.id+" write_file /project/src/main"] == 2
	})
	for what, n := range seen {
		if n > 2 || strings.HasPrefix(what, b.id) && !strings.Contains(what, "src/main") {
			t.Errorf("the log tells %d times of %s", n, what)
		}
	}
	// It ends, and another in its place is told from it; the first is heard still.
	if got := c.nemoclaw(nil, "delete", "--force", c.id); got.code != 0 {
		t.Fatalf("delete: %s", got)
	}
	insist(b, first, "write /project/.git/config", "write_file /project/.git/config")
	c.up().want("EACCES", "read /home/user/secret")
	if d := c.awaitDenial("one of another container of that name", func(d *denied) bool { return d.File.Path == "/home/user/secret" }); d.Device.UID != c.id {
		t.Errorf("it is called %s", d.Device.UID)
	}
}

// Whoever joins obeys the rules that are in force, or does not join.
func TestPodRefusesOtherRules(t *testing.T) {
	e := newEarth(t)
	b, _ := e.sandbox(allowed...)
	for _, tc := range []struct{ name, policy, says string }{
		{"one rule more", e.policy(e.Uplink(), append([]string{"evil.example 443"}, allowed...)...), "egress of policy "},
		{"one rule less", e.policy(e.Uplink(), allowed[1:]...), "egress of policy "},
		{"another network", strings.Replace(e.policy(e.Uplink(), allowed...), "network: {", "network: {ingress: none, ", 1), "network of policy "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := b.mate()
			c.policy(tc.policy)
			main, got := c.create()
			if got.code == 0 || !strings.Contains(got.stderr, tc.says) || !strings.Contains(got.stderr, b.id) || strings.Count(got.stderr, "sha256") != 2 {
				t.Errorf("create: %s", got)
			}
			if !main.silent() {
				t.Error("the program ran")
			}
		})
	}
	t.Run("the rules that were saved meanwhile", func(t *testing.T) {
		text := e.policy(e.Uplink(), allowed[:2]...)
		b.policy(text)
		c := b.mate()
		c.settings("policy: " + b.path("policy.yaml") + "\n")
		c.up().want("ECONNRESET", "dial echo.good.example:7000 hello")
	})
}

// A namespace in which others live is joined only if our gateway is there: by
// what the kernel says, not by what lies in the state directory.
func TestPodJoinsNoStrangersNamespace(t *testing.T) {
	e := newEarth(t)
	b, _ := e.sandbox(allowed...)
	refused := func(c *box, says string) {
		t.Helper()
		main, got := c.create()
		if got.code == 0 || !strings.Contains(got.stderr, says) {
			t.Errorf("create: %s, want %q", got, says)
		}
		if !main.silent() {
			t.Error("the program ran")
		}
	}
	t.Run("an index that lies", func(t *testing.T) {
		stranger := newBox(t)
		stranger.pod = true // it ends before b
		stranger.policy(e.policy(e.Uplink(), allowed...))
		stranger.up()
		// Its gateway is another run directory's; here a directory has its number.
		c := b.mate()
		c.spec.Linux.Namespaces = slices.DeleteFunc(c.spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.NetworkNamespace })
		c.netns(fmt.Sprintf("/proc/%d/ns/net", stranger.initPID()))
		refused(c, "has no gateway of nemoclaw's")
		lie := fmt.Sprintf("%s.net%d", b.stateDir(), inodeOf(t, stranger.initPID()))
		c.must(os.Symlink(b.gatewayDir(), lie))
		defer os.Remove(lie)
		refused(c, "serves another network namespace")
	})
	t.Run("a gateway that is dead", func(t *testing.T) {
		c := b.mate()
		kill(t, b.monitor())
		refused(c, "has no gateway of nemoclaw's")
	})
}

func inodeOf(t *testing.T, pid int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// A namespace that a network plugin has made, as Kubernetes' do: the cable is in
// it before the container, and the namespace outlives it.
func TestPodOfKubernetes(t *testing.T) {
	e := newEarth(t)
	pause := newBox(t)
	pause.policy(e.policy("auto", allowed...))
	ns := pinNetns(t, filepath.Join(pause.dir, "cni"))
	e.must(e.PlugInto(ns))
	pause.netns(ns)
	pause.up()
	app := pause.mate()
	k := app.up()
	k.want("ok hello", "dial echo.good.example:7000 hello")
	k.want("ECONNRESET", "dial "+world.Neighbour.String()+":7000 hello")

	// The cable goes back, down, when the last container has ended: whichever
	// way the gateway ends.
	back := func(monitor int) {
		t.Helper()
		pidfd, err := unix.PidfdOpen(monitor, 0)
		if err == nil {
			defer unix.Close(pidfd)
		}
		for _, c := range []*box{app, pause} {
			if got := c.nemoclaw(nil, "delete", "--force", c.id); got.code != 0 {
				t.Fatalf("delete: %s", got)
			}
		}
		if err == nil && !ended(pidfd) {
			t.Fatal("the gateway does not end")
		}
		if left := plugAgain(t, ns); left != "lo eth0, down" {
			t.Errorf("the namespace was left with %s", left)
		}
	}
	back(pause.monitor())
	pause.up().want("ok hello", "dial echo.good.example:7000 hello")
	kill(t, pause.monitor())
	back(0)
	pause.up().want("ok hello", "dial echo.good.example:7000 hello")
}

// plugAgain tells what is in a namespace of a network plugin's, and brings its
// cable up again as the plugin would.
func plugAgain(t *testing.T, path string) string {
	t.Helper()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil || len(tables) > 0 {
		t.Errorf("there are %d tables left: %v", len(tables), err)
	}
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, l := range links {
		name := l.Attrs().Name
		if name != "lo" {
			if l.Attrs().Flags&net.FlagUp == 0 {
				name += ", down"
			}
			if err := h.LinkSetUp(l); err != nil {
				t.Fatal(err)
			}
			if err := h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(198, 51, 100, 1)}); err != nil {
				t.Fatal(err)
			}
		}
		found = append(found, name)
	}
	return strings.Join(found, " ")
}

// pinNetns makes a network namespace that lives as long as the test.
func pinNetns(t *testing.T, file string) string {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	var make func()
	make = func() {
		goruntime.LockOSThread() // and the thread ends with us
		if unix.Gettid() == unix.Getpid() {
			go make() // the first one never ends, and its namespace is the process's
			goruntime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", file, "", unix.MS_BIND, "")
		}
		done <- err
	}
	go make()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(file, unix.MNT_DETACH) })
	return file
}
