package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// Law 3: exec is under the same policy as the container, whatever exec asks
// for, whatever became of the policy file, and whatever the agent has made of
// the container's files meanwhile.
func TestLaw3ExecObeysThePolicy(t *testing.T) {
	t.Run("asking for more", testExecAsksForMore)
	t.Run("another policy file", testExecAfterTheFileChanged)
	t.Run("another default", testExecAfterTheDefaultChanged)
	t.Run("home", testExecHasTheSameHome)
	t.Run("updated, paused and on again", testExecLater)
	t.Run("swapped paths", testExecAfterASwap)
	t.Run("no gateway", testExecWithoutGateway)
	t.Run("no gateway and swapped paths", testExecWithoutGatewayAfterASwap)
	t.Run("no gateway and a cable", testExecWithoutGatewayUnsealed)
	t.Run("not started", testExecBeforeStart)
	t.Run("handed descriptors", testExecWithDescriptors)
}

// A caller that asks exec for capabilities, for root, for no no_new_privs gets
// what the policy leaves.
func testExecAsksForMore(t *testing.T) {
	b := newBox(t)
	b.asUser()
	b.up()
	greedy := oci.Process{
		Args: []string{"/bin/probe", "serve"}, Cwd: "/", Env: []string{"PATH=/bin"},
		Capabilities:    &oci.LinuxCapabilities{},
		NoNewPrivileges: false,
	}
	for _, set := range []*[]string{&greedy.Capabilities.Bounding, &greedy.Capabilities.Effective, &greedy.Capabilities.Permitted, &greedy.Capabilities.Inheritable} {
		*set = []string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_MKNOD", "CAP_CHOWN"}
	}
	src, err := json.Marshal(greedy)
	b.must(err)
	b.write("greedy.json", string(src))
	for _, flags := range [][]string{
		{"--user", "0", "--cap", "CAP_SYS_ADMIN", "--cap", "CAP_NET_ADMIN", "--cap", "CAP_SYS_PTRACE"},
		{"--process", b.path("greedy.json")},
	} {
		k := b.exec(flags...)
		checkLayers(t, strings.Join(flags, " "), k.ask)
		const chown, bounds = 0x1, 0xa00005fb // of specs.Ceiling; CHOWN is the one that may be had
		var have uint64
		fmt.Sscanf(fields(strings.TrimPrefix(k.ask("capabilities"), "ok "))["CapBnd"], "%x", &have)
		if have&^bounds != 0 {
			t.Errorf("%v: the bounding set is %x", flags, have)
		}
		k.want("EPERM", "mount none /tmp tmpfs 0")
		k.want("EPERM", "unshare 0x40000000")
		k.want("EPERM", "link-down")
		k.end()
	}
}

// A policy that is widened after create is the next container's; exec obeys
// what was read at create.
func testExecAfterTheFileChanged(t *testing.T) {
	b := newBox(t)
	b.up()
	b.policy("filesystem: {read_only: [/root], read_write: [/usr]}\nseccomp: {allow: [ptrace, bpf]}\negress: {rules: []}\n")
	b.await("the new policy", func(l line) bool { return l.More.Kind == "policy" })
	k := b.exec()
	checkLayers(t, "exec", k.ask)
	k.want("EPERM", "sys 101 0x4206 1 0 0") // ptrace(PTRACE_SEIZE)
}

// A host whose default policy is another one by now, because its settings name
// another file or a newer nemoclaw builds in other lists, keeps to what was
// stored with the container.
func testExecAfterTheDefaultChanged(t *testing.T) {
	const narrow = "filesystem: {read_write: [/tmp], image: strict, read_only: [/bin, /usr], write_execute: deny}\ncapabilities: {keep: []}\negress: {rules: []}\n"
	for _, test := range []struct{ name, before, after, chown, memfd string }{
		{"wider", narrow, "filesystem: {read_write: [/root, /usr]}\negress: {rules: []}\n", "EPERM", "EPERM"},
		{"narrower", "egress: {rules: []}\n", narrow, "ok", "ok ran"},
		{"broken", "egress: {rules: []}\n", "egress: [\n", "ok", "ok ran"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			b.policy(test.before)
			main := b.up()
			b.write("other.yaml", test.after)
			b.settings("policy: " + b.path("other.yaml") + "\n")
			for _, k := range []*talk{main, b.exec()} {
				k.want("ok", "create /tmp/file-"+k.name)
				k.want(test.chown, "chown /tmp/file-"+k.name+" 1000")
				k.want(test.memfd, "exec-memfd /bin/echo ran")
				k.want("EACCES", "read /root/secret")
				k.want("EACCES", "create /usr/new")
			}
		})
	}
}

// What an engine does to a running container changes nothing of its layers.
func testExecLater(t *testing.T) {
	b := newBox(t)
	b.policy("filesystem: {read_only: [/sandbox/kept/]}\negress: {rules: []}\n")
	main := b.up()
	for _, step := range [][]string{{"update", "--memory", "268435456", b.id}, {"pause", b.id}, {"resume", b.id}} {
		if got := b.nemoclaw(nil, step...); got.code != 0 {
			lacking(t, "%v: %s", step, got)
		}
		if step[0] == "pause" {
			if got := b.execute(b.id, "/bin/echo", "ran"); got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, "paused") {
				t.Errorf("exec: %s", got)
			}
			continue
		}
		for _, k := range []*talk{main, b.exec()} {
			checkLayers(t, k.name+" after "+step[0], k.ask)
			k.want("EROFS", "create /sandbox/kept/x")
		}
	}
}

// Exec finds the home that the first program has, also where volumes are granted
// by the lists alone and the working directory is one.
func testExecHasTheSameHome(t *testing.T) {
	for _, test := range []struct{ policy, cwd, home, want string }{
		{"filesystem: {volumes: policy_only}", "/data", "/data/home", "/sandbox"},
		{"filesystem: {volumes: follow}", "/data", "/data/home", "/data/home"},
		{"filesystem: {read_write: [/data/home], volumes: policy_only}", "/", "/root", "/data/home"},
		{"filesystem: {deny: [/sandbox]}", "/", "/root", "/tmp"},
	} {
		t.Run(test.policy, func(t *testing.T) {
			b := newBox(t)
			b.mkdir("volume/home")
			b.mount(oci.Mount{Destination: "/data", Type: "bind", Source: b.path("volume"), Options: []string{"rbind", "rw"}})
			b.spec.Process.Cwd = test.cwd
			b.spec.Process.Env = []string{"PATH=/bin", "HOME=" + test.home}
			b.policy(test.policy + "\negress: {rules: []}\n")
			for _, k := range []*talk{b.up(), b.exec()} {
				k.want("ok "+test.want, "exec /bin/sh -c \"echo $HOME\"")
				k.want("ok", "create "+test.want+"/.config-"+k.name)
				k.want("EACCES", "read /root/secret")
			}
		})
	}
}

// The agent may move what it may write. What lies at a path now gets no right
// by that.
func testExecAfterASwap(t *testing.T) {
	b := newBox(t)
	b.policy("filesystem: {read_write: [/sandbox/work, /tmp], image: strict}\negress: {rules: []}\n")
	b.spec.Process.Cwd = "/tmp"
	main := b.up()
	main.want("ok", "create /sandbox/work/file")
	// From the host, as somebody with a shared volume could.
	work, secret := filepath.Join(b.rootfs(), "sandbox/work"), filepath.Join(b.rootfs(), "root")
	b.must(os.Rename(work, work+".old"))
	b.must(os.Symlink("/root", work))
	for _, k := range []*talk{main, b.exec()} {
		k.want("EACCES", "read /sandbox/work/secret")
	}
	b.must(os.Remove(work))
	b.must(os.Rename(secret, work)) // the directory itself, with its secret
	for _, k := range []*talk{main, b.exec()} {
		k.want("EACCES", "read /sandbox/work/secret")
		k.want("ok", "read /sandbox/work.old/file") // the rule went with its directory
	}
}

// With the gateway gone for good its copy of the rules is gone: they are made anew, as
// they were. Nothing leaves, and what exec starts may do no more than what runs.
func testExecWithoutGateway(t *testing.T) {
	for _, user := range []string{"root", "uid 1000"} {
		t.Run(user, func(t *testing.T) {
			b := newBox(t)
			if user != "root" {
				b.asUser()
			}
			b.policy("filesystem: {read_write: [/sandbox, /tmp], read_only: [/sandbox/kept/], deny: [/opt/app]}\negress: {rules: []}\n")
			main := b.up()
			b.loseGateway()
			for _, k := range []*talk{main, b.exec()} {
				for _, l := range layers {
					if l.layer != "gateway" {
						k.want(l.want, l.verb)
					}
				}
				k.want("ECONN", "dial 192.0.2.1:9") // refused, or reset where exec tries to put up a gateway
				k.want("ok 2", "status Seccomp_filters")
				k.want("ok", "create /sandbox/"+k.name)
				k.want("EROFS", "create /sandbox/kept/x")
				k.want("ENOENT", "read /opt/app/text")
			}
		})
	}
}

// Without the gateway's copy, a path at which another file lies by now would
// give exec what the container never had.
func testExecWithoutGatewayAfterASwap(t *testing.T) {
	for _, test := range []struct {
		name string
		swap func(work, secret string) error
		says string
	}{
		{"a link", func(work, _ string) error { return os.Symlink("/root", work) }, "ELOOP"},
		{"another directory", func(work, secret string) error { return os.Rename(secret, work) }, "another file lies there"},
		{"nothing", func(string, string) error { return nil }, "ENOENT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			b.policy("filesystem: {read_write: [/sandbox/work, /tmp], image: strict}\negress: {rules: []}\n")
			b.up()
			b.loseGateway()
			work := filepath.Join(b.rootfs(), "sandbox/work")
			b.must(os.Rename(work, work+".old"))
			b.must(test.swap(work, filepath.Join(b.rootfs(), "root")))
			got := b.execute(b.id, "/bin/echo", "ran")
			if got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, "/sandbox/work: ") || !strings.Contains(got.stderr, test.says) {
				t.Errorf("exec: %s", got)
			}
		})
	}
}

// A cable that was plugged in behind the dead gateway's back ends it.
func testExecWithoutGatewayUnsealed(t *testing.T) {
	b := newBox(t)
	b.up()
	b.loseGateway()
	b.plug("cable")
	got := b.execute(b.id, "/bin/echo", "ran")
	if got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, "network is not sealed") {
		t.Errorf("exec: %s", got)
	}
}

func testExecBeforeStart(t *testing.T) {
	b := newBox(t)
	_, created := b.create()
	if created.code != 0 {
		t.Fatal(created)
	}
	got := b.execute(b.id, "/bin/echo", "ran")
	if got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, "has not been started") {
		t.Errorf("exec: %s", got)
	}
}

// Descriptors that the caller passes on, and working directories that are
// descriptors of the runtime's (CVE-2024-21626), lead nowhere.
func testExecWithDescriptors(t *testing.T) {
	b := newBox(t)
	b.up()
	for fd := 0; fd < 30; fd++ {
		got := b.execute("--cwd", fmt.Sprintf("/proc/self/fd/%d", fd), b.id, "/bin/cat", "../../../../root/secret", "../../../../etc/shadow")
		if got.code == 0 || got.stdout != "" {
			t.Errorf("--cwd /proc/self/fd/%d: %s", fd, got)
		}
	}
	host, err := os.Open("/etc")
	b.must(err)
	defer host.Close()
	cmd := b.command("exec", "--preserve-fds", "1", b.id, "/bin/probe", "read-at", "3", "passwd")
	cmd.ExtraFiles = []*os.File{host}
	if got := b.finish(cmd); got.stdout != "EACCES\n" {
		t.Errorf("a host's directory handed to exec: %s", got)
	}
	// Positive control: what is handed is there, and its names can be listed.
	cmd = b.command("exec", "--preserve-fds", "1", b.id, "/bin/probe", "list-fd", "3")
	cmd.ExtraFiles = []*os.File{host}
	if got := b.finish(cmd); got.stdout != "ok\n" {
		t.Errorf("a host's directory handed to exec: %s", got)
	}
	b.wantOpen(b.exec(), "0 1 2")
}

// wantOpen compares the descriptors that a program has.
func (b *box) wantOpen(k *talk, want string) {
	b.t.Helper()
	said := strings.TrimPrefix(k.ask("fds"), "ok ")
	var open []string
	for f := range strings.FieldsSeq(said) {
		n, _, _ := strings.Cut(f, "=")
		open = append(open, n)
	}
	if strings.Join(open, " ") != want {
		b.t.Errorf("%s: open are %s, want %s", k.name, said, want)
	}
}

// Law 9: nothing inside the container can reach the control socket, the
// policy, the audit log or the launcher.
func TestLaw9GatewayIsOutOfReach(t *testing.T) {
	b := newBox(t)
	main := b.up()
	b.wantOpen(main, "0 1 2")
	for _, k := range []*talk{main, b.exec(), b.exec("--user", "1000")} {
		for _, file := range []string{
			filepath.Join(b.gatewayDir(), "control.sock"), filepath.Join(b.gatewayDir(), "runtime.sock"), filepath.Join(b.stateDir(), "sandbox.json"),
			b.auditFile(), b.path("policy.yaml"), filepath.Join(b.bin, "nemoclaw"),
		} {
			k.want("ENOENT", "stat "+file)
			k.want("ENOENT", "unix unix "+file)
			k.want("ENOENT", "unix unixpacket "+file)
			k.want("E", "walk-fds "+file)
		}
		// The gateway's processes are in another pid namespace.
		k.want("ESRCH", fmt.Sprintf("kill %d 0", b.monitor()))
		k.want("ENOENT", fmt.Sprintf("stat /proc/%d", b.monitor()))
		// Its listeners are in this network namespace, and mean nothing to
		// those who dial them.
		for _, addr := range []string{"198.18.0.1:15001", "[fd6e:656d:6f::1]:15001", "127.0.0.1:15001"} {
			if got := k.ask("http " + addr + " gateway /v1/status"); strings.Contains(got, "monitor") {
				t.Errorf("%s: %s: %s", k.name, addr, got)
			}
		}
		k.want("ECONNREFUSED", "unix unix @nemoclaw")
		// Its sockets there cannot be taken over or bound beside.
		if got := k.ask("listen 198.18.0.1:15001"); got == "ok" {
			t.Errorf("%s: the gateway's port can be listened on: %s", k.name, got)
		}
		k.want("EPERM", "dial-marked 0x6e63 192.0.2.1:53")
	}
}

// The launcher runs with the rights of the container's user, who may attack it
// for as long as it lives: many execs, while root and uid 1000 lay siege to
// every process that appears.
func TestLaw9TheLauncherHolds(t *testing.T) {
	for _, user := range []string{"0", "1000"} {
		t.Run("uid "+user, func(t *testing.T) {
			b := newBox(t)
			b.up()
			besieger := b.exec("--user", user)
			besieger.send("siege 4000")
			for range 12 {
				if got := b.execute("--user", user, b.id, "/bin/true"); got.code != 0 {
					t.Errorf("exec: %s", got)
				}
			}
			said := besieger.answer()
			t.Log(said)
			// Its own kind it may open: what counts is what the launcher and
			// runc's init were.
			if got := fields(strings.TrimPrefix(said, "ok ")); got["won"] != "" || got["processes"] == "0" {
				t.Errorf("the siege: %s", said)
			}
		})
	}
}

// A sealed memfd: what was started cannot be written, not even by the host's
// root through the container's /proc (CVE-2019-5736).
func TestLaw9TheLauncherIsSealed(t *testing.T) {
	b := newBox(t)
	_, created := b.create()
	if created.code != 0 {
		t.Fatal(created)
	}
	found := 0
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", b.initPID()))
	b.must(err)
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if !strings.Contains(to, "memfd:nemoclaw-") {
			continue
		}
		found++
		f, err := os.OpenFile(fd, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if _, err := f.WriteAt([]byte{0}, 0); err == nil {
			t.Errorf("%s can be written", to)
		}
		if err := f.Truncate(0); err == nil {
			t.Errorf("%s can be truncated", to)
		}
		f.Close()
	}
	if found != 2 {
		t.Errorf("the launcher and its plan: %d of 2 found among %v", found, fds)
	}
}
