package integration

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What an engine could ask for and must not get, each with the words that say
// why. The first row is the control: nothing is asked for.
func TestAttackBySpec(t *testing.T) {
	mount := func(kind, source, dest string, options ...string) func(*box) {
		return func(b *box) {
			b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: kind, Source: source, Destination: dest, Options: options})
		}
	}
	bind := func(source string) func(*box) { return mount("bind", source, "/sandbox/in", "rbind") }
	without := func(kind oci.LinuxNamespaceType) func(*box) {
		return func(b *box) {
			var kept []oci.LinuxNamespace
			for _, ns := range b.spec.Linux.Namespaces {
				if ns.Type != kind {
					kept = append(kept, ns)
				}
			}
			b.spec.Linux.Namespaces = kept
		}
	}
	by := func(kind oci.LinuxNamespaceType, name string) func(*box) {
		return func(b *box) {
			without(kind)(b)
			b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, oci.LinuxNamespace{Type: kind, Path: fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), name)})
		}
	}
	device := func(path string) func(*box) {
		return func(b *box) {
			b.spec.Linux.Devices = append(b.spec.Linux.Devices, oci.LinuxDevice{Path: path, Type: "c", Major: 1, Minor: 3})
		}
	}
	for _, test := range []struct {
		name   string
		change func(*box)
		want   string // of stderr; empty: it runs
	}{
		{"nothing", func(*box) {}, ""},

		{"the host's ipc", without(oci.IPCNamespace), "ipc: "},
		{"the host's network", without(oci.NetworkNamespace), "network: "},
		{"the host's mounts", without(oci.MountNamespace), "mounts: "},
		{"somebody's mounts", by(oci.MountNamespace, "mnt"), "mounts: "},
		{"the host's ipc, by a path", by(oci.IPCNamespace, "ipc"), "ipc: "},
		{"the host's network, by a path", by(oci.NetworkNamespace, "net"), "network: "},
		{"two networks", func(b *box) {
			b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, oci.LinuxNamespace{Type: oci.NetworkNamespace, Path: "/proc/self/ns/net"})
		}, "duplicate"},

		{"the kernel's settings", bind("/proc/sys"), "/proc"},
		{"a root by its process", bind("/proc/1/root"), "volumes: /proc/1/root: "},
		{"a root by dots", bind("/usr/../usr/.."), "volumes: /: "},
		{"a root by slashes", bind("//"), "volumes: /: "},
		{"a root from here", bind("../../../../../../../.."), "volumes: /: "},
		{"a home", bind("/root"), "holds the host's own files"},
		{"cgroups", bind("/sys/fs/cgroup"), "it lies in /sys"},
		{"shared memory", bind("/dev/shm"), "it lies in /dev"},
		{"what listens later", bind("/run/lock"), "it lies in /run"},
		{"a bind that does not say so", mount("none", "/root", "/sandbox/in", "rbind"), "holds the host's own files"},
		{"settings", bind("/etc/nemoclaw"), "nemoclaw's own"},

		{"a disk", mount("ext4", "/dev/vda1", "/sandbox/in"), "ext4"},
		{"devices", mount("devtmpfs", "devtmpfs", "/sandbox/in"), "devtmpfs"},
		{"an overlay", mount("overlay", "overlay", "/sandbox/in", "lowerdir=/root:/etc"), "overlay"},
		{"kernel debugging", mount("debugfs", "debugfs", "/sandbox/in"), "debugfs"},
		{"another proc", mount("proc", "proc", "/sandbox/in"), "proc belongs"},
		{"another sys", mount("sysfs", "sysfs", "/sandbox/in"), "sysfs belongs"},
		{"other cgroups", mount("cgroup", "cgroup", "/sandbox/in"), "cgroup belongs"},
		{"something over proc", mount("tmpfs", "tmpfs", "/proc"), "proc"},
		{"something over a process", mount("tmpfs", "tmpfs", "/proc/self"), "proc"},
		{"something over the root", mount("tmpfs", "tmpfs", "/everything"), "on the top of rootfs"},
		{"something over proc, by a link", func(b *box) {
			b.must(os.Symlink("/proc", filepath.Join(b.rootfs(), "p")))
			mount("tmpfs", "tmpfs", "/p/self")(b)
		}, "proc"},

		{"a device among files", device("/sandbox/null"), "devices: "},
		{"a device by dots", device("/dev/../sandbox/null"), "devices: "},
		{"a device in shared memory", device("/dev/shm/null"), "devices: "},

		{"a hook inside", func(b *box) {
			b.spec.Hooks = &oci.Hooks{StartContainer: []oci.Hook{{Path: "/bin/echo", Args: []string{"echo", "ran"}}}}
		}, "hooks: "},
		{"a listener of system calls", func(b *box) {
			b.spec.Linux.Seccomp = &oci.LinuxSeccomp{DefaultAction: oci.ActAllow, ListenerPath: "/nowhere",
				Syscalls: []oci.LinuxSyscall{{Names: []string{"landlock_restrict_self"}, Action: oci.ActNotify}}}
		}, "seccomp profile"},
		{"Landlock that only seems to work", func(b *box) {
			zero := uint(0)
			b.spec.Linux.Seccomp = &oci.LinuxSeccomp{DefaultAction: oci.ActAllow,
				Syscalls: []oci.LinuxSyscall{{Names: []string{"landlock_restrict_self"}, Action: oci.ActErrno, ErrnoRet: &zero}}}
		}, ""}, // let in by the first filter, and denied to the program by the second
		{"Landlock for some arguments", func(b *box) {
			zero := uint(0)
			b.spec.Linux.Seccomp = &oci.LinuxSeccomp{DefaultAction: oci.ActAllow, Syscalls: []oci.LinuxSyscall{
				{Names: []string{"landlock_restrict_self"}, Action: oci.ActErrno, ErrnoRet: &zero, Args: []oci.LinuxSeccompArg{{Index: 1, Value: 99, Op: oci.OpNotEqual}}}}}
		}, "seccomp profile"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			test.change(b)
			got := b.run("/bin/probe", "read", "/root/secret")
			switch {
			case test.want == "" && !strings.HasPrefix(got.stdout, "EACCES"):
				t.Errorf("it does not run as it should: %s", got)
			case test.want != "" && (got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, test.want)):
				t.Errorf("%s\nwant it refused: %s", got, test.want)
			}
		})
	}
}

// What an image or an agent could prepare in the files. Each row opens paths in
// the container, with what must come of it; the control is in the first rows.
func TestAttackByFiles(t *testing.T) {
	volume := func(b *box, name, dest string, options ...string) string {
		b.mkdir(name)
		b.write(name+"/file", "of the volume")
		b.must(os.Chmod(b.path(name), 0o777))
		b.must(os.Chmod(b.path(name+"/file"), 0o666))
		b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "bind", Source: b.path(name), Destination: dest, Options: append(options, "rbind")})
		return b.path(name)
	}
	policy := func(b *box, filesystem string) { b.policy("filesystem: {" + filesystem + "}\negress: {rules: []}\n") }
	image := func(b *box, name string) string { return filepath.Join(b.rootfs(), name) }
	type table map[string]string // verb to answer
	for _, test := range []struct {
		name    string
		prepare func(*box)
		want    table
	}{
		{"a volume", func(b *box) { volume(b, "v", "/data") },
			table{"read /data/file": "ok", "write /data/file": "ok", "read /root/secret": "EACCES"}},
		{"a volume that is read-only", func(b *box) { volume(b, "v", "/data", "ro") },
			table{"read /data/file": "ok", "write /data/file": "EROFS"}},
		{"a working directory", func(b *box) { b.spec.Process.Cwd = "/opt/app" },
			table{"write /opt/app/text": "ok", "write /usr/share/text": "EACCES"}},

		{"a working directory that is a link", func(b *box) { b.spec.Process.Cwd = "/work" },
			table{"read secret": "EACCES", "read /root/secret": "EACCES", "create new": "EACCES"}},
		{"a working directory behind a link to everything", func(b *box) { b.spec.Process.Cwd = "/everything/root" },
			table{"read secret": "EACCES", "create new": "EACCES"}},
		{"a working directory by dots", func(b *box) { b.spec.Process.Cwd = "/opt/../root/." },
			table{"read secret": "EACCES", "create new": "EACCES"}},
		{"a working directory that is listed to be read", func(b *box) {
			policy(b, "read_only: [/opt/app, /etc, /bin]")
			b.spec.Process.Cwd = "/opt/app"
		}, table{"read text": "ok", "write text": "EACCES"}},
		{"a volume that is listed to be read", func(b *box) {
			policy(b, "read_only: [/data, /etc, /bin]")
			volume(b, "v", "/data")
		}, table{"read /data/file": "ok", "write /data/file": "EACCES"}},
		{"the search path", func(b *box) { b.spec.Process.Env = []string{"PATH=/bin:/root:/root/.:/home/user:/work:/everything"} },
			table{"read /root/secret": "EACCES", "read /home/user/secret": "EACCES"}},
		{"a home", func(b *box) { b.spec.Process.Env = []string{"PATH=/bin", "HOME=/sandbox/../root"} },
			table{"read /root/secret": "EACCES"}},
		{"the sandbox's directory is a link", func(b *box) { b.must(os.Symlink("/root", image(b, "sandbox"))) },
			table{"read /sandbox/secret": "EACCES", "create /sandbox/new": "EACCES"}},
		{"a temporary directory is a link", func(b *box) { b.must(os.Symlink("/home/user", image(b, "tmp"))) },
			table{"read /tmp/secret": "EACCES", "create /tmp/new": "EACCES"}},
		{"a link to read a home", func(b *box) { b.must(os.Symlink("/root", image(b, "app"))) },
			table{"read /app/secret": "EACCES"}},

		{"a volume's place is a link into a home", func(b *box) {
			b.must(os.Symlink("/root", image(b, "data")))
			volume(b, "v", "/data/in")
		}, table{"read /data/in/file": "ok", "read /data/secret": "EACCES", "read /root/secret": "EACCES"}},
		{"a volume's place is led away by another volume", func(b *box) {
			// /d/in is mounted first, then /d over it, in which an agent left a
			// link of that name to the root, which is a mount as well.
			outer := b.path("outer")
			volume(b, "inner", "/d/in")
			volume(b, "outer", "/d")
			b.must(os.Symlink("/", outer+"/in"))
		}, table{"read /root/secret": "EACCES", "read /d/in/root/secret": "EACCES", "create /root/new": "EACCES"}},
		{"a scratch directory is led away by a volume", func(b *box) {
			b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/d/in"})
			b.must(os.Symlink("/", volume(b, "outer", "/d")+"/in"))
		}, table{"read /root/secret": "EACCES", "read /d/in/root/secret": "EACCES", "create /root/new": "EACCES"}},

		{"volumes that no list grants", func(b *box) {
			policy(b, "volumes: policy_only")
			volume(b, "a", "/data")
			volume(b, "b", "/deep/data")
			volume(b, "c", "/root/tools")
			b.must(os.Symlink("/fresh", image(b, "alias")))
			volume(b, "d", "/alias/data")
			b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "bind", Source: b.path("a/file"), Destination: "/single", Options: []string{"rbind"}})
			b.spec.Process.Env = []string{"PATH=/bin:/root/tools"}
		}, table{"read /data/file": "EACCES", "read /deep/data/file": "EACCES", "read /root/tools/file": "EACCES", "read /fresh/data/file": "EACCES", "read /single": "EACCES", "read /opt/app/text": "ok"}},
		{"a working directory in a volume that no list grants", func(b *box) {
			policy(b, "volumes: policy_only")
			b.must(os.MkdirAll(b.path("v/below"), 0o755))
			b.must(os.WriteFile(b.path("v/below/file"), nil, 0o666))
			volume(b, "v", "/data")
			b.spec.Process.Cwd = "/data/below"
		}, table{"read /data/below/file": "EACCES", "create /data/below/new": "EACCES", "read /data/file": "EACCES"}},
		{"a working directory that is such a volume", func(b *box) {
			policy(b, "volumes: policy_only")
			volume(b, "v", "/opt/app/data")
			b.spec.Process.Cwd = "/opt/app"
		}, table{"read /opt/app/data/file": "ok", "write /opt/app/data/file": "EACCES", "read /opt/app/text": "ok"}},
		{"a program in such a volume", func(b *box) {
			policy(b, "volumes: policy_only")
			b.must(os.MkdirAll(b.path("v/bin"), 0o755))
			volume(b, "v", "/root/v")
			b.spec.Process.Env = []string{"PATH=/root/v/bin:/bin"}
			b.must(os.WriteFile(b.path("v/bin/file"), nil, 0o666))
		}, table{"read /root/v/bin/file": "EACCES", "read /root/v/file": "EACCES"}},
		{"a token at a relative place", func(b *box) { volume(b, "token", "var/run/secrets/kubernetes.io/serviceaccount", "ro") },
			table{"read /var/run/secrets/kubernetes.io/serviceaccount/file": "ENOENT"}},
		{"a service account's token", func(b *box) { volume(b, "token", "/var/run/secrets/kubernetes.io/serviceaccount", "ro") },
			table{"read /var/run/secrets/kubernetes.io/serviceaccount/file": "ENOENT", "list /var": "ok"}},
		{"a token that is named", func(b *box) {
			policy(b, "read_only: [/var/run/secrets/kubernetes.io/serviceaccount, /bin, /etc]")
			volume(b, "token", "/var/run/secrets/kubernetes.io/serviceaccount", "ro")
		}, table{"read /var/run/secrets/kubernetes.io/serviceaccount/file": "ok"}},
		{"name servers without end", func(b *box) {
			b.must(unix.Mkfifo(image(b, "etc/resolv.conf"), 0o666))
		}, table{"read /root/secret": "EACCES"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			test.prepare(b)
			main := b.up()
			for _, k := range []*talk{main, b.exec()} {
				for verb, want := range test.want {
					k.want(want, verb)
				}
			}
		})
	}
}

// A volume's source is swapped while it is being judged and mounted, by one who
// may write above it. What is mounted in the end is what was judged, or
// nothing is.
func TestAttackBySwap(t *testing.T) {
	b := newBox(t)
	b.mkdir("shared/good", "secret")
	b.write("shared/good/file", "good")
	b.write("secret/file", "stolen")
	source := b.path("shared/source")
	b.must(os.Symlink(b.path("shared/good"), source))
	b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "bind", Source: source, Destination: "/data", Options: []string{"rbind"}})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Symlink(b.path([]string{"secret", "shared/good"}[n%2]), source+".new")
			_ = os.Rename(source+".new", source)
		}
	}()
	defer func() { close(stop); <-stopped }()
	// Here the guard forbids neither: what counts is that both are not mixed.
	b.policy("filesystem: {volumes: policy_only, read_write: [/data]}\negress: {rules: []}\n")
	ran, refused := 0, 0
	for range 30 {
		switch got := b.run("/bin/probe", "read", "/data/file"); {
		case strings.Contains(got.stderr, "another file was put in its place"):
			refused++
		case got.code == 0:
			ran++
		default:
			t.Fatal(got)
		}
	}
	t.Logf("it ran %d times, and %d times the swap was seen", ran, refused)
}

// A link in the image leads a volume below another volume, in which an agent
// left a link of its name.
func TestAttackByTwoLinks(t *testing.T) {
	b := newBox(t)
	b.must(os.Symlink("/d", filepath.Join(b.rootfs(), "l")))
	b.mkdir("inner", "outer")
	b.must(os.Symlink("/", b.path("outer/in")))
	for _, m := range [][2]string{{"inner", "/l/in"}, {"outer", "/d"}} {
		b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "bind", Source: b.path(m[0]), Destination: m[1], Options: []string{"rbind"}})
	}
	if got := b.run("/bin/probe", "read", "/root/secret"); got.code == 0 || got.stdout != "" {
		t.Errorf("it ran: %s", got)
	}
}

// In the host's pid namespace a program sees everybody and touches nobody,
// though it has their user id. The control is what it does to itself.
func TestAttackByProcesses(t *testing.T) {
	b := newBox(t)
	var kept []oci.LinuxNamespace
	for _, ns := range b.spec.Linux.Namespaces {
		if ns.Type != oci.PIDNamespace {
			kept = append(kept, ns)
		}
	}
	b.spec.Linux.Namespaces = kept
	main := b.up()
	victim := fmt.Sprint(os.Getpid())
	for _, k := range []*talk{main, b.exec()} {
		k.want("ok", "sys 302 0 7 0 buf") // prlimit64(self, RLIMIT_NOFILE)
		k.want("ok", "read /proc/"+victim+"/comm")
		for _, who := range []string{victim, fmt.Sprint(b.monitor()), fmt.Sprint(b.worker()), "1"} {
			k.want("EPERM", "kill "+who+" 0")
			k.want("EPERM", "kill "+who+" 9")
			k.want("EPERM", "sys 302 "+who+" 0 buf 0") // prlimit64(RLIMIT_CPU)
			k.want("EACCES", "read /proc/"+who+"/root/etc/shadow")
			k.want("EACCES", "read /proc/"+who+"/environ")
			k.want("EACCES", "readlink /proc/"+who+"/fd/0")
			k.want("EPERM", "ptrace "+who)
			k.want("EPERM", "take-fd "+who+" 0")
			k.want("EPERM", "vm-read "+who)
			k.want("EACCES", "write /proc/"+who+"/oom_score_adj")
			k.want("EACCES", "join /proc/"+who+"/ns/mnt")
		}
	}
}

// nemoclaw is killed in the middle of each of its commands, whenever it may be.
// A forced delete then leaves nothing behind, and the next container of that
// name runs.
func TestAttackByKilling(t *testing.T) {
	b := newBox(t)
	b.spec.Process.Args = []string{"/bin/sleep", "1000"}
	b.saveSpec()
	// kill runs a command and ends it after a while, if it has not ended.
	killed := func(after time.Duration, args ...string) bool {
		cmd := b.command(args...)
		b.must(cmd.Start())
		alarm := time.AfterFunc(after, func() { cmd.Process.Kill() })
		_ = cmd.Wait()
		return !alarm.Stop()
	}
	create := []string{"create", "--bundle", b.path("bundle"), "--pid-file", b.path("pid"), b.id}
	defer reapOrphans()()
	hits := map[string]int{}
	for round := range 60 {
		after := time.Duration(round) * 1500 * time.Microsecond
		for _, stage := range []string{"create", "start", "exec", "delete"} {
			args := map[string][]string{"create": create, "start": {"start", b.id}, "exec": {"exec", b.id, "/bin/true"}, "delete": {"delete", "--force", b.id}}[stage]
			if []string{"create", "start", "exec", "delete"}[round%4] == stage {
				if killed(after, args...) {
					hits[stage]++
				}
				break
			}
			if got := b.nemoclaw(nil, args...); got.code != 0 && stage != "create" {
				t.Fatalf("%s before the kill: %s", stage, got)
			} else if got.code != 0 {
				t.Fatalf("the next create: %s", got)
			}
		}
		if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
			t.Fatalf("delete after a kill: %s", got)
		}
		if left := b.leftovers(); len(left) > 0 {
			t.Fatalf("round %d, killed after %v: left behind: %s", round, after, left)
		}
	}
	t.Log("killed in time: ", hits)
}

// Commands on one container at the same time, and a create of its name: whoever
// wins, nothing runs unconfined, and in the end nothing is left.
func TestAttackByRaces(t *testing.T) {
	b := newBox(t)
	b.spec.Process.Args = []string{"/bin/sh", "-c", "cat /root/secret; sleep 1000"}
	b.saveSpec()
	defer reapOrphans()()
	create := []string{"create", "--bundle", b.path("bundle"), b.id}
	for round := range 12 {
		commands := [][]string{create, {"start", b.id}, {"exec", b.id, "/bin/cat", "/root/secret"}, {"delete", "--force", b.id}, create, {"start", b.id}, {"exec", b.id, "/bin/cat", "/root/secret"}}
		outs := make([]*os.File, len(commands))
		cmds := make([]*exec.Cmd, len(commands))
		for i, args := range commands {
			f, err := os.Create(b.path(fmt.Sprint("race", i)))
			b.must(err)
			cmds[i] = b.command(args...)
			cmds[i].Stdout, cmds[i].Stderr = f, f
			outs[i] = f
			b.must(cmds[i].Start())
			if i == 0 || (i+round)%3 == 0 { // some are let through before the others begin
				_ = cmds[i].Wait()
			}
		}
		for i, cmd := range cmds {
			if cmd.ProcessState == nil {
				alarm := time.AfterFunc(patience, func() { cmd.Process.Kill() })
				_ = cmd.Wait()
				if !alarm.Stop() {
					t.Errorf("%v does not end", commands[i])
				}
			}
		}
		if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
			t.Fatalf("round %d: delete: %s", round, got)
		}
		for i, f := range outs {
			if said, _ := os.ReadFile(f.Name()); strings.Contains(string(said), "stolen") {
				t.Errorf("%v: %s", commands[i], said)
			}
			f.Close()
		}
		if left := b.leftovers(); len(left) > 0 {
			t.Fatalf("round %d: left behind: %s", round, left)
		}
	}
	if got := b.run("/bin/cat", "/usr/share/text"); got.stdout != "public" {
		t.Errorf("the next one does not run: %s", got)
	}
}

// Another user of the host reads and enters nothing of a sandbox's.
func TestAttackByNeighbour(t *testing.T) {
	b := newBox(t)
	b.up()
	b.must(os.Chmod(b.dir, 0o755))
	b.write("control", "")
	as := func(uid uint32, file string) error {
		cmd := exec.Command("busybox", "cat", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
	if err := as(65534, b.path("control")); err != nil {
		t.Fatal("the control: ", err)
	}
	for _, file := range []string{
		filepath.Join(b.stateDir(), "sandbox.json"), filepath.Join(b.gatewayDir(), "control.sock"), filepath.Join(b.gatewayDir(), "runtime.sock"),
		b.auditFile(), b.path("root/" + b.id + "/state.json"), b.path("root/" + b.id + "/exec.fifo"),
	} {
		if err := as(65534, file); err == nil {
			t.Errorf("another user reads %s", file)
		}
		for dir := file; dir != b.dir; dir = filepath.Dir(dir) {
			if st, err := os.Lstat(dir); err == nil && st.Mode()&0o022 != 0 && st.Mode()&os.ModeSymlink == 0 {
				t.Errorf("others may write %s: %v", dir, st.Mode())
			}
		}
	}
}

// Two containers that share a pid namespace see each other, and that is all.
func TestAttackOnSibling(t *testing.T) {
	b := newBox(t)
	b.up()
	victim := b.initPID()
	c := newBox(t)
	for i, ns := range c.spec.Linux.Namespaces {
		if ns.Type == oci.PIDNamespace {
			c.spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", victim)
		}
	}
	main := c.up()
	t.Cleanup(reapOrphans())
	t.Cleanup(func() { // both, before one of them looks for what is left
		for _, box := range []*box{c, b} {
			if got := box.nemoclaw(nil, "delete", "--force", box.id); got.code != 0 {
				t.Error(got)
			}
		}
	})
	for _, k := range []*talk{main, c.exec()} {
		k.want("ok", "read /proc/1/comm")
		k.want("EPERM", "kill 1 0")
		k.want("EPERM", "sys 302 1 0 buf 0")
		k.want("EACCES", "read /proc/1/root/usr/share/text")
		k.want("EACCES", "read /proc/1/environ")
		k.want("EPERM", "vm-read 1")
		k.want("EPERM", "take-fd 1 0")
	}
}

// reapOrphans does what the machine's first process would: it collects what has
// ended in a container after the exec that started it was killed. Until then
// the container's init cannot end.
func reapOrphans() (stop func()) {
	ended, done := make(chan os.Signal, 100), make(chan struct{})
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		defer close(done)
		for range ended {
			for _, pid := range children(os.Getpid()) {
				status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				_, ns, _ := strings.Cut(string(status), "NSpid:")
				ns, _, _ = strings.Cut(ns, "\n")
				if len(strings.Fields(ns)) > 1 {
					reap(pid)
				}
			}
		}
	}()
	return func() {
		signal.Stop(ended)
		close(ended)
		<-done
	}
}

// Limits and arguments that could trip the launcher: the program runs confined,
// or it does not run.
func TestAttackByStart(t *testing.T) {
	b := newBox(t)
	limit := func(kind string, n uint64) func() {
		return func() { b.spec.Process.Rlimits = []oci.POSIXRlimit{{Type: kind, Soft: n, Hard: n}} }
	}
	args := func(args ...string) func() { return func() { b.spec.Process.Args = args } }
	tests := map[string]func(){
		"no descriptors":   limit("RLIMIT_NOFILE", 0),
		"no file size":     limit("RLIMIT_FSIZE", 0),
		"no memory":        limit("RLIMIT_AS", 1<<20),
		"no data":          limit("RLIMIT_DATA", 0),
		"no stack":         limit("RLIMIT_STACK", 1<<14),
		"no processes":     limit("RLIMIT_NPROC", 1),
		"no core":          limit("RLIMIT_CORE", 0),
		"no time":          limit("RLIMIT_CPU", 0),
		"an empty name":    args(""),
		"a directory":      args("/bin/"),
		"a slash":          args("/bin/busybox/"),
		"the launcher":     args("/proc/self/fd/3", "cat", "/root/secret"),
		"the launcher too": args("/proc/self/exe", "cat", "/root/secret"),
		"the plan":         args("/proc/self/fd/4", "cat", "/root/secret"),
		"no such name":     args("cat\x01", "/root/secret"),
		"a relative name":  args("./bin/cat", "/root/secret"),
		"a long name":      args("/"+strings.Repeat("a/", 2500), "/root/secret"),
		"a long argument":  args("/bin/cat", "/root/secret", strings.Repeat("a", 100<<10)),
		"many arguments":   args(append([]string{"/bin/cat", "/root/secret"}, strings.Split(strings.Repeat("a ", 5000), " ")...)...),
	}
	for n := range uint64(16) {
		tests[fmt.Sprint(n+1, " descriptors")] = limit("RLIMIT_NOFILE", n+1)
	}
	for name, change := range tests {
		b.spec.Process.Rlimits, b.spec.Process.Args = nil, []string{"/bin/cat", "/root/secret"}
		change()
		got := b.run(b.spec.Process.Args...)
		if got.code == 0 || strings.Contains(got.stdout, "stolen") {
			t.Errorf("%s: %s", name, got)
		}
	}
	b.spec.Process.Rlimits = nil
	if got := b.run("/bin/cat", "/usr/share/text"); got.stdout != "public" {
		t.Errorf("the control does not run: %s", got)
	}
}

// A user namespace of the container's own changes nothing: root in it has what
// the ceiling leaves, over what Landlock leaves.
func TestAttackInUserNamespace(t *testing.T) {
	b := newBox(t)
	const first = 200000
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, oci.LinuxNamespace{Type: oci.UserNamespace})
	ids := []oci.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = ids, ids
	b.must(filepath.WalkDir(b.rootfs(), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, first, first)
	}))
	b.must(os.Chmod(b.dir, 0o755))
	b.saveSpec()
	k, got := b.create()
	if got.code != 0 {
		if strings.Contains(got.stderr, "uid_map") || strings.Contains(got.stderr, "mapping") {
			lacking(t, "this kernel refuses user namespaces: %s", got.stderr)
		}
		t.Fatal(got)
	}
	if got := b.start(); got.code != 0 {
		t.Fatal(got)
	}
	for _, k := range []*talk{k, b.exec()} {
		k.want("ok 1", "status NoNewPrivs")
		k.want("ok", "create /sandbox/new")
		k.want("ok", "unlink /sandbox/new")
		k.want("EACCES", "read /root/secret")
		k.want("EPERM", "unshare 0x10000000")
		k.want("EPERM", "mount none /tmp tmpfs 0")
		k.want("E", "link-down")
	}
}

// Profiles of an engine that would make the launcher believe that it did its
// work. Whatever they say, both filters are on, and Landlock, or nothing runs.
func TestAttackByProfile(t *testing.T) {
	calls := []string{"landlock_restrict_self", "seccomp", "openat", "close", "fcntl", "pread64", "prctl"}
	eacces, none := uint(13), uint(0)
	rule := func(name string, action oci.LinuxSeccompAction, errno *uint) oci.LinuxSyscall {
		return oci.LinuxSyscall{Names: []string{name}, Action: action, ErrnoRet: errno}
	}
	lie := func(name string) oci.LinuxSyscall {
		if name == "openat" {
			return rule(name, oci.ActErrno, &eacces) // as if Landlock had denied it
		}
		return rule(name, oci.ActErrno, &none)
	}
	allow := func(name string) oci.LinuxSyscall { return rule(name, oci.ActAllow, nil) }
	profiles := map[string][]oci.LinuxSyscall{"nothing": nil}
	for _, c := range calls {
		profiles[c] = []oci.LinuxSyscall{lie(c)}
		profiles[c+", allowed first"] = []oci.LinuxSyscall{allow(c), lie(c)}
		profiles[c+", allowed then"] = []oci.LinuxSyscall{lie(c), allow(c)}
		profiles[c+", logged first"] = []oci.LinuxSyscall{rule(c, oci.ActLog, nil), lie(c)}
	}
	all, twice := []oci.LinuxSyscall{}, []oci.LinuxSyscall{}
	for _, c := range calls[:4] {
		all, twice = append(all, lie(c)), append(twice, allow(c), lie(c))
	}
	profiles["all"], profiles["all, allowed first"] = all, twice
	b := newBox(t)
	ran := 0
	for name, rules := range profiles {
		b.spec.Linux.Seccomp = &oci.LinuxSeccomp{DefaultAction: oci.ActAllow, Syscalls: rules}
		b.saveSpec()
		// Each layer by a call that no profile here lies about.
		verbs := "stat /root/secret\ntruncate /root/secret\npersonality 0x0400000\n"
		got := b.nemoclaw(strings.NewReader(verbs), "run", "--bundle", b.path("bundle"), b.id)
		switch got.stdout {
		case "ok\nEACCES\nEPERM\n":
			ran++
		case "":
			t.Logf("%s: %.100s", name, got.stderr)
			b.nemoclaw(nil, "delete", "--force", b.id)
		default:
			t.Errorf("%s: %s", name, got)
		}
	}
	if ran < 10 {
		t.Errorf("programs ran under %d of %d profiles only", ran, len(profiles))
	}
}
