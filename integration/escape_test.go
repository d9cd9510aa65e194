package integration

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An attempt is one way out that somebody found before, or that a manual page
// suggests. want is how the answer begins for root and for uid 1000; several,
// separated by |, where the kernel's own rules come first for one of them.
type attempt struct {
	name   string
	source string
	verb   string
	want   string
}

// attempts that need no preparation. Each group ends with a positive control: a
// neighbour of the attempts that must work, or the group proves nothing.
var attempts = map[string][]attempt{
	"reading what the policy leaves out": {
		{"by its name", "landlock(7)", "read /root/secret", "EACCES"},
		{"a user's home", "landlock(7)", "read /home/user/secret", "EACCES"},
		{"what hosts mount", "landlock(7)", "read /mnt/secret", "EACCES"},
		{"through the root's magic link", "proc_pid_root(5)", "read /proc/self/root/root/secret", "EACCES"},
		{"through pid 1's root", "proc_pid_root(5)", "read /proc/1/root/root/secret", "EACCES|EPERM"},
		{"through a thread's root", "proc_pid_task(5)", "read /proc/thread-self/root/root/secret", "EACCES"},
		{"through dots", "path_resolution(7)", "read /usr/share/../../root/secret", "EACCES"},
		{"through every descriptor and its parents", "CVE-2024-21626", "walk-fds /root/secret", "E"},
		{"through a link of the image", "CVE-2018-15664", "read /work/secret", "EACCES"},
		{"through a link of the image to /", "CVE-2018-15664", "read /everything/root/secret", "EACCES"},
		{"by a descriptor opened by path only", "open(2), O_PATH", "opath /root/secret", "EACCES"},
		{"by openat2 without flags", "openat2(2)", "openat2 /root/secret 0", "EACCES"},
		{"by openat2 in its own root", "openat2(2), RESOLVE_IN_ROOT", "openat2 /root/secret 0x10", "EACCES"},
		{"by a file handle", "CVE-2014-9357, open_by_handle_at(2)", "handle /root/secret", "EPERM"},
		{"by listing", "getdents(2)", "list /root", "EACCES"},
		{"by listing the root", "getdents(2)", "list /", "EACCES"},
		{"after chdir", "chdir(2)", "read-at -100 /root/secret", "EACCES"},
		{"after linking it to a writable place", "link(2)", "link /root/secret /tmp/stolen", "EXDEV|EACCES|EPERM"},
		{"after linking it through /proc", "linkat(2), AT_SYMLINK_FOLLOW", "link-fd /root/secret /tmp/stolen", "EXDEV|EACCES|EPERM"},
		{"after moving it", "rename(2)", "rename /root/secret /tmp/stolen", "EXDEV|EACCES"},
		{"after exchanging it", "renameat2(2), RENAME_EXCHANGE", "exchange /root/secret /tmp/own", "EXDEV|EACCES"},
		{"kernel memory", "proc_kcore(5)", "read /proc/kcore", "ENOENT|EACCES|EPERM"},
		{"the kernel's keys", "proc_keys(5)", "read /proc/keys", "EACCES|ok"},
		{"the host's disks", "mknod(2)", "read /dev/sda", "ENOENT"},
		{"CONTROL the image's own files", "policy", "read /usr/share/text", "ok public"},
		{"CONTROL an application's", "policy, image: auto", "read /opt/app/text", "ok public"},
		{"CONTROL by openat2", "openat2(2)", "openat2 /usr/share/text 0x10", "ok"},
	},
	"writing what may only be read": {
		{"by its name", "landlock(7)", "write /usr/share/text", "EACCES"},
		{"a new file", "landlock(7)", "create /usr/share/new", "EACCES"},
		{"a program", "landlock(7)", "write /bin/busybox", "EACCES|ETXTBSY"},
		{"one's own program", "CVE-2019-5736", "rewrite self", "EACCES|ETXTBSY"},
		{"the first process's program", "CVE-2019-5736", "rewrite 1", "EACCES|EPERM|ETXTBSY"},
		{"emptying by truncate", "truncate(2), Landlock ABI 3", "truncate /usr/share/text", "EACCES"},
		{"emptying by opening", "open(2), O_TRUNC", "read-truncating /usr/share/text", "EACCES"},
		{"an unnamed file", "open(2), O_TMPFILE", "tmpfile /usr/share", "EACCES"},
		{"a directory", "mkdir(2)", "mkdir /usr/share/new", "EACCES"},
		{"removing", "unlink(2)", "unlink /usr/share/text", "EACCES"},
		{"a link", "symlink(2)", "symlink /root /usr/share/new", "EACCES"},
		{"a pipe", "mknod(2)", "mknod /usr/share/new p 0 0", "EACCES"},
		{"through a link of the image", "symlink(7)", "create /everything/usr/share/new", "EACCES"},
		{"the kernel's parameters", "proc_sys(5)", "sysctl kernel.core_pattern |/tmp/x", "EACCES|EROFS"},
		{"who is killed first by hotplug", "CVE-2022-0492", "write /sys/fs/cgroup/memory/release_agent", "E"},
		{"the kernel's trigger", "proc_sysrq-trigger(5)", "write /proc/sysrq-trigger", "ENOENT|EACCES|EROFS"},
		{"CONTROL a new file in /tmp", "policy", "create /tmp/mine", "ok"},
		{"CONTROL a directory in /tmp", "policy", "mkdir /tmp/dir", "ok"},
		{"CONTROL moving between directories of /tmp", "policy, LANDLOCK_ACCESS_FS_REFER", "rename /tmp/mine /tmp/dir/mine", "ok"},
		{"CONTROL emptying", "policy", "truncate /tmp/dir/mine", "ok"},
		{"CONTROL removing", "policy", "unlink /tmp/dir/mine", "ok"},
		{"CONTROL the directory", "policy", "rmdir /tmp/dir", "ok"},
	},
	"devices": {
		{"a disk", "mknod(2)", "mknod /tmp/sda b 8 0", "EPERM|EACCES"},
		{"kernel memory", "mknod(2)", "mknod /tmp/mem c 1 1", "EPERM|EACCES"},
		{"raw memory", "mem(4)", "read /dev/mem", "ENOENT"},
		{"another terminal line discipline", "CVE-2023-6546, TIOCSETD", "ioctl 0 0x5423", "EPERM"},
		{"typing into a terminal", "CVE-2017-5226, TIOCSTI", "ioctl 0 0x5412", "EPERM"},
		{"pasting into a console", "CVE-2023-28100, TIOCLINUX", "ioctl 0 0x541c", "EPERM"},
		{"typing, with upper bits set", "CVE-2019-10063", "ioctl 0 0x100005412", "EPERM"},
		{"CONTROL the null device", "policy", "write /dev/null", "ok"},
		{"CONTROL randomness", "policy", "read /dev/urandom", "ok"},
		{"CONTROL an ioctl that is none of them", "ioctl_tty(2)", "ioctl 0 0x5401", "ENOTTY"},
	},
	"mounts and namespaces": {
		{"a file system", "mount(2)", "mount none /tmp tmpfs 0", "EPERM"},
		{"a bind mount", "mount(2), MS_BIND", "mount /root /tmp none 0x1000", "EPERM"},
		{"the proc mount writable", "mount(2), MS_REMOUNT", "mount none /proc none 0x20", "EPERM"},
		{"unmounting a mask", "umount(2)", "umount /proc/kcore", "EPERM"},
		{"a read-only mount writable", "mount_setattr(2), unmediated by Landlock", "mount-writable /sys", "EPERM"},
		{"a detached tree", "open_tree(2)", "open-tree /", "EPERM"},
		{"a new file system's context", "CVE-2022-0185, fsopen(2)", "fsopen ext4", "EPERM"},
		{"another root", "chroot(2)", "chroot /tmp", "EPERM"},
		{"a user namespace", "CVE-2022-0185, unshare(2)", "unshare 0x10000000", "EPERM"},
		{"a mount namespace", "unshare(2)", "unshare 0x20000", "EPERM"},
		{"a network namespace", "unshare(2)", "unshare 0x40000000", "EPERM"},
		{"a user namespace for a child", "clone(2)", "clone 0x10000000", "EPERM"},
		{"a network namespace for a child", "clone(2)", "clone 0x40000000", "EPERM"},
		{"joining pid 1's", "setns(2)", "join /proc/1/ns/mnt", "EPERM|EACCES"},
		{"joining one's own", "setns(2)", "join /proc/self/ns/net", "EPERM"},
		{"CONTROL a child without a namespace", "clone(2)", "clone 0", "ok"},
		{"CONTROL a Landlock layer of its own", "landlock(7)", "nest", "ok"},
	},
	"other processes": {
		{"tracing", "ptrace(2)", "ptrace OTHER", "EPERM"},
		{"reading its memory", "process_vm_readv(2)", "vm-read OTHER", "EPERM"},
		{"its memory as a file", "CVE-2012-0056, proc_pid_mem(5)", "read /proc/OTHER/mem", "EACCES|EPERM"},
		{"its environment", "proc_pid_environ(5)", "read /proc/OTHER/environ", "EACCES|EPERM"},
		{"its descriptors", "pidfd_getfd(2)", "take-fd OTHER 0", "EPERM"},
		{"all processes of the host", "pid_namespaces(7)", "kill 99999 0", "ESRCH"},
		{"CONTROL its name", "proc_pid_status(5)", "read /proc/OTHER/comm", "ok probe"},
	},
	"kernel attack surface": {
		{"bpf", "CVE-2021-3490", "sys 321 0xffffffff 0 0", "EPERM"},
		{"perf_event_open", "CVE-2013-2094", "sys 298 buf 0 -1 -1 0", "EPERM"},
		{"io_uring", "CVE-2023-2598", "sys 425 8 buf", "EPERM"},
		{"userfaultfd", "CVE-2016-4557, userfaultfd(2)", "sys 323 0", "EPERM"},
		{"keyctl", "CVE-2016-0728, CVE-2024-42318", "sys 250 0 0 0", "EPERM"},
		{"add_key", "keyrings(7)", "sys 248 buf buf buf 1 0", "EPERM"},
		{"request_key", "keyrings(7)", "sys 249 buf buf 0 0", "EPERM"},
		{"a module", "init_module(2)", "sys 175 buf 1 buf", "EPERM"},
		{"kexec", "kexec_load(2)", "sys 246 0 0 0 0", "EPERM"},
		{"the kernel's log", "syslog(2)", "sys 103 3 buf 100", "EPERM"},
		{"the clock", "settimeofday(2)", "sys 164 buf 0", "EPERM"},
		{"ports", "iopl(2)", "sys 172 3", "EPERM"},
		{"16-bit segments", "CVE-2015-5157, modify_ldt(2)", "sys 154 0 buf 100", "EPERM"},
		{"executable data by default", "personality(2)", "personality 0x400000", "EPERM"},
		{"no address randomisation", "personality(2)", "personality 0x40000", "EPERM"},
		{"secret memory", "memfd_secret(2)", "sys 447 0", "ENOSYS"},
		{"clone3", "clone(2)", "sys 435 buf 64", "ENOSYS"},
		{"a call that this version does not know", "seccomp(2)", "sys 999", "ENOSYS"},
		{"a program without a name", "execveat(2), AT_EMPTY_PATH", "exec-empty /bin/busybox", "ENOSYS"},
		{"32-bit calls", "CVE-2010-3301", "i386 20", "EPERM|error killed"},
		{"x32 calls", "CVE-2014-0038", "x32 39", "EPERM|ENOSYS|error killed"},
		{"CONTROL asking for the personality", "personality(2)", "personality 0xffffffff", "ok"},
		{"CONTROL a program of its own making", "policy: /tmp may execute", "exec-copy /bin/busybox /tmp/busybox echo ran", "ok"},
		{"CONTROL a program in memory", "memfd_create(2)", "exec-memfd /bin/echo ran", "ok ran"},
		{"CONTROL a program of the image", "policy", "exec /bin/echo ran", "ok ran"},
		{"CONTROL memory that may be executed", "mmap(2), compilers at run time", "memory-executable", "ok"},
	},
	"sockets": {
		{"the hypervisor", "vsock(7)", "socket 40 1 0", "EAFNOSUPPORT"},
		{"the kernel's ciphers", "CVE-2019-8912, AF_ALG", "socket 38 5 0", "EAFNOSUPPORT"},
		{"Bluetooth", "CVE-2020-12351", "socket 31 3 1", "EAFNOSUPPORT"},
		{"TIPC", "CVE-2021-43267", "socket 30 1 0", "EAFNOSUPPORT"},
		{"packets", "CVE-2017-7308, packet(7)", "socket 17 3 0x0300", "EAFNOSUPPORT"},
		{"express data path", "AF_XDP", "socket 44 3 0", "EAFNOSUPPORT"},
		{"a key socket", "AF_KEY", "socket 15 3 2", "EAFNOSUPPORT"},
		{"raw IP", "raw(7)", "socket 2 3 255", "EPERM"},
		{"raw ICMP", "raw(7)", "socket 2 3 1", "EPERM"},
		{"raw, with flags", "socket(2)", "socket 2 0x80803 1", "EPERM"},
		{"the firewall", "CVE-2023-32233, netlink(7)", "socket 16 3 12", "EPROTONOSUPPORT"},
		{"the audit system", "netlink(7)", "socket 16 3 9", "EPROTONOSUPPORT"},
		{"the kernel's events", "netlink(7)", "socket 16 3 15", "EPROTONOSUPPORT"},
		{"taking an interface down", "netdevice(7)", "link-down", "EPERM"},
		{"an abstract socket of the host's", "unix(7)", "unix unix @/tmp/.X11-unix/X0", "ECONNREFUSED"},
		{"the engine's socket", "unix(7)", "unix unix /var/run/docker.sock", "ENOENT"},
		{"CONTROL TCP", "policy", "socket 2 1 0", "ok"},
		{"CONTROL UDP", "policy", "socket 10 2 0", "ok"},
		{"CONTROL a unix socket", "policy", "socket 1 1 0", "ok"},
		{"CONTROL routes, read by getaddrinfo", "policy", "socket 16 3 0", "ok"},
		{"CONTROL a listener", "policy", "listen 127.0.0.1:8080", "ok"},
	},
}

// The attempts, in the first process and in exec, as root with what Docker
// grants and as uid 1000.
func TestEscapes(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("numbers of amd64")
	}
	for _, user := range []string{"root", "user"} {
		t.Run(user, func(t *testing.T) {
			b := newBox(t)
			if user == "user" {
				b.asUser()
			}
			main := b.up()
			exec := b.exec()
			main.tryAll(t, exec)
			exec.tryAll(t, main)
			b.untouched()
		})
	}
}

// tryAll makes all attempts, one group after the other; other is whom the
// word OTHER means.
func (k *talk) tryAll(t *testing.T, other *talk) {
	t.Helper()
	pid := strings.TrimPrefix(other.ask("pid"), "ok ")
	k.ask("create /tmp/own")
	for group, list := range attempts {
		controls := 0
		for _, a := range list {
			got := k.ask(strings.ReplaceAll(a.verb, "OTHER", pid))
			ok := false
			for want := range strings.SplitSeq(a.want, "|") {
				ok = ok || strings.HasPrefix(got, want)
			}
			if !ok {
				t.Errorf("%s: %s: %s (%s): %s: %s, want %s", k.name, group, a.name, a.source, a.verb, got, a.want)
			}
			if strings.HasPrefix(a.name, "CONTROL") {
				controls++
			}
		}
		if controls == 0 {
			t.Errorf("%s: nothing shows that an attempt could have worked", group)
		}
		k.ask("unlink /tmp/busybox")
	}
}

// untouched looks at the image from outside: nothing that was denied happened.
func (b *box) untouched() {
	b.t.Helper()
	for file, want := range map[string]string{"root/secret": "stolen", "usr/share/text": "public", "mnt/secret": "stolen"} {
		text, err := os.ReadFile(filepath.Join(b.rootfs(), file))
		if err != nil || string(text) != want {
			b.t.Errorf("%s is now %q (%v)", file, text, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(b.rootfs(), "usr/share"))
	b.must(err)
	if len(entries) != 1 {
		b.t.Errorf("/usr/share holds %v", entries)
	}
}

// A link of the image at a place that the policy grants: what it leads to was
// not granted (the trap of research: /work -> /secret).
func TestEscapeByTheImagesLinks(t *testing.T) {
	b := newBox(t)
	b.policy("filesystem: {read_write: [/work, /everything/deeper, /sandbox], image: strict}\negress: {rules: []}\n")
	b.spec.Process.Cwd = "/sandbox"
	got := b.ask("read /root/secret", "read /work/secret", "create /work/new", "read /usr/share/text", "read /everything/usr/share/text", "create /sandbox/new")
	want := []string{"EACCES", "EACCES", "EACCES", "ok public", "ok public", "ok"}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("answer %d: %s, want %s", i, got[i], want[i])
		}
	}
}

// A hostile working directory: a link of the image, a descriptor, a system
// directory.
func TestEscapeByTheWorkingDirectory(t *testing.T) {
	for _, cwd := range []string{"/work", "/everything", "/root", "/etc", "/proc/self/fd/7", "/proc/self/fd/8"} {
		t.Run(strings.ReplaceAll(cwd, "/", "_"), func(t *testing.T) {
			b := newBox(t)
			b.spec.Process.Cwd = cwd
			b.spec.Process.Args = []string{"/bin/probe", "serve"}
			b.saveSpec()
			got := b.nemoclaw(strings.NewReader("read /root/secret\ncreate /etc/new\nread /home/user/secret\nread ../../../etc/shadow\n"),
				"run", "--bundle", b.path("bundle"), b.id)
			if got.code != 0 && got.stdout == "" {
				return // refused is as good
			}
			answers := strings.Split(got.stdout, "\n")
			for i, a := range answers[:4] {
				if strings.HasPrefix(a, "ok") {
					t.Errorf("answer %d of %s", i, got)
				}
			}
		})
	}
}

// What the policy allows answers otherwise: what denied it before was the
// second filter, not the kernel. The rest of it stays.
func TestEscapePositiveControlOfSeccomp(t *testing.T) {
	b := newBox(t)
	b.policy("seccomp: {allow: [ptrace, ioctl]}\negress: {rules: []}\n")
	got := b.ask("sys 101 0x4206 0 0 0", "ioctl 0 0x5412", "sys 425 8 buf")
	for i, want := range []string{"ESRCH", "ENOTTY", "EPERM"} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("answer %d: %s, want %s", i, got[i], want)
		}
	}
}

// The state of a sandbox is root's alone: "without root: read nothing".
func TestStateIsClosedToOthers(t *testing.T) {
	b := newBox(t)
	b.up()
	for _, path := range []string{b.stateDir(), b.auditFile(), filepath.Join(b.gatewayDir(), "control.sock"), filepath.Join(b.gatewayDir(), "runtime.sock"), filepath.Join(b.stateDir(), "sandbox.json")} {
		var st unix.Stat_t
		b.must(unix.Lstat(path, &st))
		if st.Mode&0o077 != 0 || st.Uid != 0 {
			t.Errorf("%s: mode %o, owner %d", path, st.Mode&0o7777, st.Uid)
		}
	}
	// Nor does the gateway inherit anything of its creator's.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/[012]", b.monitor()))
	b.must(err)
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); to != "/dev/null" {
			t.Errorf("the monitor's %s is %s", filepath.Base(fd), to)
		}
	}
}
