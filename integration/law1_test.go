package integration

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Law 1: no program of the image runs before all four layers are on; on any
// error none runs at all.
func TestLaw1NothingRunsUnconfined(t *testing.T) {
	t.Run("first instruction", testConfinedFromTheFirst)
	t.Run("create refuses", testCreateRefuses)
	t.Run("start refuses", testStartRefuses)
	t.Run("kernel lacks", testKernelLacks)
}

// layers are asked of a program: each is one layer's own answer.
var layers = []struct{ layer, verb, want string }{
	{"no_new_privs", "status NoNewPrivs", "ok 1"},
	{"landlock", "read /root/secret", "EACCES"},
	{"landlock, writing", "create /usr/share/new", "EACCES"},
	{"seccomp, the second filter", "sys 321 0xffffffff 0 0", "EPERM"}, // bpf(2) with no such command; amd64
	{"seccomp, arguments", "socket 40 1 0", "EAFNOSUPPORT"},           // AF_VSOCK
	{"namespace", "interfaces", "ok lo"},
	{"namespace, no way out", "udp 192.0.2.1:9", "ECONNREFUSED"},
	{"gateway", "dial 192.0.2.1:9", "ECONNRESET"},
	{"positive control: the policy's own", "tmpfile /tmp", "ok"},
	{"positive control: the image's own", "read /usr/share/text", "ok public"},
}

func checkLayers(t *testing.T, who string, ask func(string) string) {
	t.Helper()
	for _, l := range layers {
		if got := ask(l.verb); !strings.HasPrefix(got, l.want) {
			t.Errorf("%s: %s: %s: %s, want %s", who, l.layer, l.verb, got, l.want)
		}
	}
	if got := ask("status Seccomp_filters"); got != "ok 2" {
		t.Errorf("%s: there are %s seccomp filters, want 2", who, got)
	}
}

// The first thing that a program does is to try all layers, as root and not, at
// create's end of the life and at exec's.
func testConfinedFromTheFirst(t *testing.T) {
	for _, user := range []string{"root", "user"} {
		t.Run(user, func(t *testing.T) {
			b := newBox(t)
			if user == "user" {
				b.asUser()
			}
			main := b.up()
			checkLayers(t, "main", main.ask)
			checkLayers(t, "exec", b.exec().ask)
			checkLayers(t, "exec as root", b.exec("--user", "0").ask)
		})
	}
}

// Each of these is a container that cannot be confined.
func testCreateRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(b *box)
		says  string
	}{
		{"the gateway's program is missing", func(b *box) { b.otherGateway("") }, "nemoclaw-gateway cannot be executed"},
		{"the gateway dies at once", func(b *box) { b.otherGateway("#!/bin/sh\nexit 1\n") }, "the gateway"},
		{"the gateway is no program", func(b *box) { b.otherGateway("no program") }, "nemoclaw-gateway cannot be executed"},
		{"the policy does not parse", func(b *box) { b.policy("egress:\n  rulez: []\n") }, "policy.yaml:2:3"},
		{"the policy is a directory", func(b *box) { b.must(os.Remove(b.path("policy.yaml"))); b.mkdir("policy.yaml") }, "cannot use policy"},
		{"the policy needs a path that the image lacks", func(b *box) { b.policy("filesystem: {read_only: [/usr, /nowhere]}\negress: {rules: []}\n") }, "/nowhere"},
		{"the policy denies what the launcher needs", func(b *box) { b.policy("seccomp: {deny: [execve]}\negress: {rules: []}\n") }, "execve"},
		{"an annotation chooses the policy", func(b *box) { b.spec.Annotations = map[string]string{"io.nemoclaw.policy": "unconfined"} }, "unconfined"},
		{"the settings do not parse", func(b *box) { b.write("config.yaml", "run_dri: /x\n") }, "run_dri"},
		{"no audit log can be written", func(b *box) { b.write("file", ""); b.settings("log_dir: " + b.path("file") + "/log\n") }, "audit log"},
		{"no state can be written", func(b *box) { b.write("file", ""); b.settings("run_dir: " + b.path("file") + "/run\n") }, "state directory"},
		{"there is no proc", func(b *box) { b.dropMount("/proc") }, "proc"},
		{"the host's network", func(b *box) { b.dropNamespace(oci.NetworkNamespace) }, "network namespace"},
		{"a network namespace that somebody lives in", func(b *box) { b.netns("/proc/self/ns/net") }, "network namespace"},
		{"a hook inside the container", func(b *box) {
			b.spec.Hooks = &oci.Hooks{StartContainer: []oci.Hook{{Path: "/bin/probe", Args: []string{"probe", "create", "/sandbox/mark"}}}}
		}, "startContainer"},
		{"the host's secrets as a volume", func(b *box) { b.volume("/etc", "/host", "rbind", "rw") }, "/etc"},
		{"the policy in a writable volume", func(b *box) {
			b.mkdir("mine")
			b.must(os.Rename(b.path("policy.yaml"), b.path("mine/policy.yaml")))
			b.settings("policy: " + b.path("mine/policy.yaml") + "\n")
			b.volume(b.path("mine"), "/mine", "rbind", "rw")
		}, "policy"},
		{"a prestart hook fails", func(b *box) {
			b.spec.Hooks = &oci.Hooks{CreateRuntime: []oci.Hook{{Path: "/bin/false"}}}
		}, "hook"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			c.spoil(b)
			got := b.run("/bin/sh", "-c", "echo ran; echo ran > /sandbox/mark")
			if got.code == 0 || !strings.Contains(got.stderr, c.says) {
				t.Errorf("run: %s, want an error that says %q", got, c.says)
			}
			b.wantNothingRan(got)
			b.settings("") // delete must find what is left, if anything is
			for _, what := range b.leftovers() {
				t.Errorf("left behind: %s", what)
			}
		})
	}
}

// Between create and start something breaks that create had put up.
func testStartRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(b *box)
		says  string
	}{
		{"the gateway is dead, and cannot be started again", func(b *box) { b.loseGateway() }, "gateway"},
		{"the state is gone", func(b *box) { b.must(os.Remove(filepath.Join(b.stateDir(), "sandbox.json"))) }, "sandbox.json"},
		{"the fence is gone", func(b *box) { b.flushFence() }, "fence"},
		{"somebody plugs in what cannot be taken out again", func(b *box) { b.add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}) }, "br0"},
		{"init is dead", func(b *box) { kill(b.t, b.initPID()) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			b.policy("network: {uplink: none}\negress: {rules: []}\n")
			k, got := b.create()
			if got.code != 0 {
				t.Fatalf("create: %s", got)
			}
			c.spoil(b)
			if got := b.start(); got.code == 0 || !strings.Contains(got.stderr, c.says) {
				t.Errorf("start: %s, want an error that says %q", got, c.says)
			}
			if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
				t.Errorf("delete: %s", got)
			}
			reapAll()
			if !k.silent() {
				t.Error("the program ran")
			}
		})
	}
}

// A kernel that answers one of our system calls with an error is what an older
// one, or an outer sandbox, looks like. Whichever it is: nothing runs, or what
// runs is confined.
func testKernelLacks(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("numbers of amd64")
	}
	for name, nr := range map[string]int{
		"landlock_create_ruleset": unix.SYS_LANDLOCK_CREATE_RULESET, "landlock_add_rule": unix.SYS_LANDLOCK_ADD_RULE,
		"landlock_restrict_self": unix.SYS_LANDLOCK_RESTRICT_SELF, "seccomp": unix.SYS_SECCOMP, "memfd_create": unix.SYS_MEMFD_CREATE,
		"fsopen": unix.SYS_FSOPEN, "fsmount": unix.SYS_FSMOUNT, "openat2": unix.SYS_OPENAT2, "pidfd_open": unix.SYS_PIDFD_OPEN, "setns": unix.SYS_SETNS,
		"unshare": unix.SYS_UNSHARE, "sendmsg": unix.SYS_SENDMSG, "close_range": unix.SYS_CLOSE_RANGE, "capset": unix.SYS_CAPSET, "fdatasync": unix.SYS_FDATASYNC,
	} {
		for _, errno := range []unix.Errno{unix.ENOSYS, unix.EPERM} {
			if errno == unix.EPERM && (name == "seccomp" || name == "landlock_restrict_self") {
				continue // the same, and start waits seconds for a worker
			}
			t.Run(name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				b := newBox(t)
				b.deny = fmt.Sprintf("%d %d", int(errno), nr)
				verbs := make([]string, len(layers))
				for i, l := range layers {
					verbs[i] = l.verb
				}
				b.saveSpec()
				got := b.nemoclaw(strings.NewReader(strings.Join(verbs, "\n")+"\n"), "run", "--bundle", b.path("bundle"), b.id)
				b.deny = ""
				if got.stdout == "" && got.code != 0 {
					return
				}
				answers := strings.Split(got.stdout, "\n")
				for i, l := range layers {
					if i >= len(answers) || !strings.HasPrefix(answers[i], l.want) {
						t.Errorf("the program ran without the layer %s: %s", l.layer, got)
						break
					}
				}
			})
		}
	}
}

// wantNothingRan looks for what the program would have left.
func (b *box) wantNothingRan(got result) {
	b.t.Helper()
	if _, err := os.Lstat(filepath.Join(b.rootfs(), "sandbox/mark")); err == nil || got.stdout != "" {
		b.t.Errorf("a program of the image ran: %s", got)
	}
}

// otherGateway puts another gateway beside the runtime, or none.
func (b *box) otherGateway(text string) {
	b.t.Helper()
	b.mkdir("bin")
	exe, err := os.ReadFile(filepath.Join(b.bin, "nemoclaw"))
	b.must(err)
	b.must(os.WriteFile(b.path("bin/nemoclaw"), exe, 0o755))
	if text != "" {
		b.must(os.WriteFile(b.path("bin/nemoclaw-gateway"), []byte(text), 0o755))
	}
	b.bin = b.path("bin")
}

func (b *box) dropMount(point string) {
	var left []oci.Mount
	for _, m := range b.spec.Mounts {
		if m.Destination != point {
			left = append(left, m)
		}
	}
	b.spec.Mounts = left
}

func (b *box) dropNamespace(kind oci.LinuxNamespaceType) {
	var left []oci.LinuxNamespace
	for _, n := range b.spec.Linux.Namespaces {
		if n.Type != kind {
			left = append(left, n)
		}
	}
	b.spec.Linux.Namespaces = left
}

func (b *box) netns(path string) {
	b.dropNamespace(oci.NetworkNamespace)
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, oci.LinuxNamespace{Type: oci.NetworkNamespace, Path: path})
}

func (b *box) volume(source, destination string, options ...string) {
	b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "bind", Source: source, Destination: destination, Options: options})
}

// flushFence removes the container's nftables rules, as nobody inside can.
func (b *box) flushFence() {
	b.t.Helper()
	b.inside(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
}

// plug gives the container an interface that leads somewhere, as engines do
// between create and start.
func (b *box) plug(name string) {
	b.t.Helper()
	b.add(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-far"})
}

// add makes a link in the container's network namespace.
func (b *box) add(link netlink.Link) {
	b.t.Helper()
	b.inside(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.LinkAdd(link)
	})
}

// inside runs f in the container's network namespace, on a thread that ends
// with it.
func (b *box) inside(f func() error) {
	b.t.Helper()
	b.must(within(fmt.Sprintf("/proc/%d/ns/net", b.initPID()), f))
}

// within runs f in the network namespace at path.
func within(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it, and so never on the first one:
// the whole test would be seen to live where f went.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			done <- onThread(f)
			goruntime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// reapAll collects every child that has ended.
func reapAll() {
	for _, pid := range children(os.Getpid()) {
		reap(pid)
	}
}
