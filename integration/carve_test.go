package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// each runs f in a container's first process and through exec, as root, as uid
// 1000, and as root of a user namespace: what is kept apart is kept apart from
// all of them.
func each(t *testing.T, prepare func(*box), f func(t *testing.T, b *box, k *talk)) {
	t.Helper()
	for _, user := range []string{"root", "uid 1000", "user namespace"} {
		t.Run(user, func(t *testing.T) {
			b := newBox(t)
			switch user {
			case "uid 1000":
				b.asUser()
			case "user namespace":
				b.inUserNamespace()
			}
			prepare(b)
			main := b.up()
			for _, k := range []*talk{main, b.exec()} {
				t.Run(k.name, func(t *testing.T) {
					k.t = t
					f(t, b, k)
				})
			}
		})
	}
}

// inUserNamespace gives the container ids of its own, from 100000 on.
func (b *box) inUserNamespace() {
	b.t.Helper()
	ids := []oci.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = ids, ids
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, oci.LinuxNamespace{Type: oci.UserNamespace})
	b.must(os.Chmod(b.dir, 0o755))
	b.must(filepath.WalkDir(b.rootfs(), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 100000, 100000)
	}))
}

// tree makes files below dir, all of them writable by everybody: "a/b" is a
// file that says kept, "a/b/" a directory.
func (b *box) tree(dir string, names ...string) {
	b.t.Helper()
	for _, name := range names {
		at := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			b.must(os.MkdirAll(at, 0o777))
			continue
		}
		b.must(os.MkdirAll(filepath.Dir(at), 0o777))
		b.must(os.WriteFile(at, []byte("kept"), 0o666))
	}
	b.must(filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(path, st.Mode()|0o777)
	}))
}

func (b *box) mount(m oci.Mount) { b.spec.Mounts = append(b.spec.Mounts, m) }

// A project with what an agent must not change and not see: in a directory of
// the image, which is the working directory, in a volume, and in a tmpfs.
func TestCarveOuts(t *testing.T) {
	files := []string{".git/config", ".git/hooks/", "deep/er/secret/key", "deep/er/open", ".env", "src/main"}
	each(t, func(b *box) {
		b.tree(filepath.Join(b.rootfs(), "project"), files...)
		b.mkdir("volume")
		b.tree(b.path("volume"), files...)
		b.mount(oci.Mount{Destination: "/data", Type: "bind", Source: b.path("volume"), Options: []string{"rbind", "rw"}})
		b.mount(oci.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0777"}})
		b.spec.Process.Cwd = "/project/deep"
		b.policy(`filesystem:
  read_write: [/project, /tmp]
  read_only: [/project/.git/config, /project/.git/hooks/, /data/.git/config, /data/.git/hooks, /scratch/a/rules/]
  deny: [/project/.env, /project/deep/er/secret, /data/.env, /data/deep/er/secret/, /scratch/hidden/]
egress: {rules: []}
`)
	}, func(t *testing.T, b *box, k *talk) {
		for _, dir := range []string{"/project", "/data"} {
			in := func(name string) string { return dir + "/" + name }

			// What is kept can be read and cannot be changed.
			k.want("ok kept", "read "+in(".git/config"))
			k.want("EROFS", "write "+in(".git/config"))
			k.want("EROFS", "truncate "+in(".git/config"))
			k.want("EROFS", "create "+in(".git/hooks/pre-commit"))
			k.want("EROFS", "mkdir "+in(".git/hooks/x"))
			k.want("EROFS", "chmod "+in(".git/config")+" 0777")

			// It can be neither removed, nor replaced, nor moved, nor linked to.
			k.want("EBUSY", "unlink "+in(".git/config"))
			k.want("EBUSY", "rmdir "+in(".git/hooks"))
			k.want("ok", "create "+in(".git/mine"))
			k.want("EBUSY", "rename "+in(".git/mine")+" "+in(".git/config"))
			for _, name := range []string{".git", ".git/hooks", ".git/config", "deep", "deep/er", "deep/er/secret", ".env"} {
				k.want("EBUSY", "rename "+in(name)+" "+in(name)+".moved")
			}
			k.want("EXDEV", "rename "+in(".git/mine")+" "+in("mine")) // the price of a pin
			k.want("EBUSY", "exchange "+in("src")+" "+in(".git"))
			k.want("EXDEV", "link "+in(".git/config")+" "+in("linked"))

			// What is hidden is empty, and stays that.
			k.want("ok", "list "+in("deep/er/secret"))
			if got := k.ask("list " + in("deep/er/secret")); got != "ok" {
				t.Errorf("%s: what is hidden lists %q", k.name, got)
			}
			k.want("ENOENT", "read "+in("deep/er/secret/key"))
			k.want("EROFS", "create "+in("deep/er/secret/key"))
			k.want("EROFS", "chmod "+in("deep/er/secret")+" 0777")
			if got := k.ask("read " + in(".env")); got != "ok" {
				t.Errorf("%s: what is hidden says %q", k.name, got)
			}
			k.want("ENOENT", "read "+in("deep/er/secret/../secret/key"))
			k.want("EBUSY", "unlink "+in(".env"))

			// Beside it everything is as before.
			k.want("ok", "write "+in("src/main"))
			k.want("ok", "write "+in("deep/er/open"))
			k.want("ok", "create "+in(".git/index"))
			k.want("ok", "rename "+in("src")+" "+in("moved"))
			k.want("ok", "rename "+in("moved")+" "+in("src"))
			k.want("ok", "rename "+in(".git/index")+" "+in(".git/HEAD"))
			k.want("ok", "unlink "+in(".git/mine"))
		}

		// A directory whose name ended in a slash was made.
		k.want("EROFS", "create /scratch/a/rules/x")
		k.want("EROFS", "create /scratch/hidden/x")
		k.want("EBUSY", "rename /scratch/a /scratch/b")
		k.want("ok", "create /scratch/a/x")

		// The working directory sees the same, from the first process on.
		k.want("ENOENT", "read er/secret/key")
		k.want("ENOENT", "read /proc/self/cwd/er/secret/key")
		if k.name == "main" {
			k.want("EROFS", "create /proc/1/cwd/er/secret/key")
		}
		k.want("ok", "write er/open")
	})
}

// A shell's recursive remove takes what may be taken and leaves the rest.
func TestCarveOutsSurviveRemoval(t *testing.T) {
	each(t, func(b *box) {
		b.tree(filepath.Join(b.rootfs(), "project"), "a/b/keep/file", "a/b/go")
		b.policy("filesystem: {read_write: [/project], read_only: [/project/a/b/keep]}\negress: {rules: []}\n")
	}, func(t *testing.T, b *box, k *talk) {
		if got := k.ask("exec /bin/busybox rm -rf /project/a"); !strings.HasPrefix(got, "error") {
			t.Errorf("rm -rf: %s", got)
		}
		k.want("ok kept", "read /project/a/b/keep/file")
		k.want("ENOENT", "stat /project/a/b/go")
	})
}

// Hidden within read-only within writable.
func TestNestedCarveOuts(t *testing.T) {
	each(t, func(b *box) {
		b.tree(filepath.Join(b.rootfs(), "project"), "conf/app", "conf/x/key", "conf/lib/tool")
		b.policy(`filesystem:
  read_write: [/project]
  read_only: [/project/conf]
  deny: [/project/conf/x/key, /project/conf/missing, /usr/share/text, /nowhere]
egress: {rules: []}
`)
	}, func(t *testing.T, b *box, k *talk) {
		k.want("ok kept", "read /project/conf/app")
		k.want("EROFS", "write /project/conf/app")
		if got := k.ask("read /project/conf/x/key"); got != "ok" {
			t.Errorf("what is hidden says %q", got)
		}
		k.want("EROFS", "create /project/conf/missing")
		k.want("EBUSY", "rename /project/conf /project/moved")
		if got := k.ask("read /usr/share/text"); got != "ok" {
			t.Errorf("what is hidden says %q", got)
		}
	})
}

// A volume inside of a pinned directory stays where it is, one inside of a
// read-only place is read-only with it, and one inside of a hidden place hidden.
func TestCarveOutsHoldVolumes(t *testing.T) {
	each(t, func(b *box) {
		b.tree(filepath.Join(b.rootfs(), "project"), "a/open/", "a/keep/vol/", "a/secret/vol/")
		for _, name := range []string{"open", "keep/vol", "secret/vol"} {
			source := strings.ReplaceAll(name, "/", "-")
			b.mkdir(source)
			b.tree(b.path(source), "file")
			b.mount(oci.Mount{Destination: "/project/a/" + name, Type: "bind", Source: b.path(source), Options: []string{"rbind", "rw"}})
		}
		b.policy("filesystem: {read_write: [/project], read_only: [/project/a/keep], deny: [/project/a/secret]}\negress: {rules: []}\n")
	}, func(t *testing.T, b *box, k *talk) {
		k.want("ok kept", "read /project/a/open/file")
		k.want("ok", "create /project/a/open/"+k.name)
		k.want("ok kept", "read /project/a/keep/vol/file")
		k.want("EROFS", "write /project/a/keep/vol/file")
		k.want("ENOENT", "read /project/a/secret/vol/file")
		k.want("EROFS", "rename /project/a/keep/vol /project/a/keep/gone")
	})
}

// What would not hold is refused, and nothing runs.
func TestCarveOutsRefused(t *testing.T) {
	for _, test := range []struct{ name, policy, says string }{
		{"a link on the way", "read_write: [/project], deny: [/project/link/x]", "a symbolic link lies on the way"},
		{"the place is a link", "read_write: [/project], deny: [/project/link]", "a symbolic link lies on the way"},
		{"a link from elsewhere", "read_write: [/project], read_only: [/out/keep]", "within /project, which may be written; name that"},
		{"a file that is missing", "read_write: [/project], deny: [/project/key]", `write \"/project/key/\" to have a directory made`},
		{"read-only and missing", "read_write: [/project], read_only: [/project/rules]", "the image has no such file"},
		{"the working directory", "read_write: [/project], deny: [/project/dir]", "cannot enter the working directory /project/dir/below"},
		{"the program", "read_write: [/project], deny: [/bin]", "stat /bin/probe"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			b.tree(filepath.Join(b.rootfs(), "project"), "dir/below/", "keep")
			b.must(os.Symlink("dir", filepath.Join(b.rootfs(), "project/link")))
			b.must(os.Symlink("project", filepath.Join(b.rootfs(), "out")))
			if test.name == "the working directory" {
				b.spec.Process.Cwd = "/project/dir/below"
			}
			b.policy("filesystem: {" + test.policy + "}\negress: {rules: []}\n")
			k, got := b.create()
			if got.code == 0 || !strings.Contains(got.stderr, test.says) && !strings.Contains(got.stderr, strings.ReplaceAll(test.says, `\`, "")) {
				t.Errorf("create: %s", got)
			}
			if !k.silent() {
				t.Error("something ran")
			}
		})
	}
}

// The documented limit: another name of the same file, made before, is not kept.
// And whoever else writes a volume moves what is kept, and its mount with it: the
// program gains nothing that he could not do himself.
func TestCarveOutsOfASharedVolume(t *testing.T) {
	b := newBox(t)
	b.mkdir("volume")
	b.tree(b.path("volume"), "a/keep", "twice")
	b.must(os.Link(b.path("volume/twice"), b.path("volume/other")))
	b.mount(oci.Mount{Destination: "/data", Type: "bind", Source: b.path("volume"), Options: []string{"rbind", "rw"}})
	b.policy("filesystem: {read_only: [/data/a/keep, /data/twice]}\negress: {rules: []}\n")
	k := b.up()
	k.want("EROFS", "write /data/twice")
	k.want("ok", "write /data/other")
	b.must(os.Rename(b.path("volume/a"), b.path("volume/b")))
	k.want("EROFS", "write /data/b/keep")
	k.want("EBUSY", "rename /data/b /data/c")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	b.must(err)
	if strings.Contains(string(mounts), b.path("volume")) {
		t.Error("a mount of the container's is the host's as well")
	}
}

// What may be written cannot be executed, however it is tried; and without the
// key it can.
func TestWriteExecute(t *testing.T) {
	for _, policy := range []struct{ name, text string }{
		{"allow", "read_write: [/project, /tmp, /dev/shm], write_execute: allow"},
		{"deny", "read_write: [/project, /tmp, /dev/shm], write_execute: deny"},
		{"one place", "read_write: [{path: /project, exec: false}, /tmp, /dev/shm]"},
	} {
		t.Run(policy.name, func(t *testing.T) {
			each(t, func(b *box) {
				b.tree(filepath.Join(b.rootfs(), "project"), "dir/")
				b.mkdir("volume")
				b.tree(b.path("volume"), "dir/")
				b.mount(oci.Mount{Destination: "/data", Type: "bind", Source: b.path("volume"), Options: []string{"rbind", "rw"}})
				b.mount(oci.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0777"}})
				b.spec.Process.Cwd = "/project"
				b.policy("filesystem: {" + policy.text + "}\negress: {rules: []}\n")
			}, func(t *testing.T, b *box, k *talk) {
				for _, dir := range []string{"/project/dir", "/tmp", "/data/dir", "/scratch", "/proc/self/cwd/dir"} {
					inProject := strings.HasPrefix(dir, "/project") || strings.HasPrefix(dir, "/proc")
					run, mapped, script := "ok ran", "ok", "ok ran"
					if policy.name == "deny" || policy.name == "one place" && inProject {
						run, mapped = "EACCES", "EPERM"
					}
					copied := dir + "/busybox-" + k.name
					k.want(run, "exec-copy /bin/busybox "+copied+" echo ran")
					k.want(mapped, "map-exec "+copied)
					k.want("ok", "shell-script "+dir+"/script-"+k.name+" echo ran")
					k.want(script, "exec /bin/sh "+dir+"/script-"+k.name) // interpreters read what they like
					k.want("ok", "unlink "+copied)
				}
				memory := "ok ran"
				if policy.name == "deny" {
					memory = "EPERM"
				}
				k.want(memory, "exec-memfd /bin/echo ran")
				k.want(map[string]string{"ok ran": "ENOSYS", "EPERM": "EPERM"}[memory], "exec-empty /bin/echo")
				k.want("ok ran", "exec /bin/echo ran")
			})
		})
	}
}

// The dynamic linker runs what Landlock would not execute: it only reads. The
// mount refuses to map it.
func TestLinkerRunsNothingWritten(t *testing.T) {
	linker, err := filepath.EvalSymlinks("/lib64/ld-linux-x86-64.so.2")
	if err != nil {
		linker, err = filepath.EvalSymlinks("/lib/ld-linux-aarch64.so.1")
	}
	if err != nil {
		lacking(t, "there is no dynamic linker of glibc's: %v", err)
	}
	for _, test := range []struct{ policy, want string }{{"allow", "ok"}, {"deny", "error"}} {
		t.Run(test.policy, func(t *testing.T) {
			each(t, func(b *box) {
				for from, to := range map[string]string{linker: "bin/ld.so", "/bin/true": "bin/dynamic"} {
					text, err := os.ReadFile(from)
					b.must(err)
					b.must(os.WriteFile(filepath.Join(b.rootfs(), to), text, 0o755))
				}
				libc := filepath.Join(filepath.Dir(linker), "libc.so.6")
				text, err := os.ReadFile(libc)
				b.must(err)
				b.must(os.WriteFile(filepath.Join(b.rootfs(), "bin/libc.so.6"), text, 0o755))
				b.policy("filesystem: {write_execute: " + test.policy + "}\negress: {rules: []}\n")
			}, func(t *testing.T, b *box, k *talk) {
				k.want("ok", "exec /bin/ld.so --library-path /bin /bin/dynamic") // positive control
				k.want("ok", "copy-file /bin/dynamic /tmp/dynamic-"+k.name)
				k.want(test.want, "exec /bin/ld.so --library-path /bin /tmp/dynamic-"+k.name)
			})
		})
	}
}

// A device node that the spec carries may be used; one that was not chosen, or
// gives away the host, may not.
func TestDevices(t *testing.T) {
	device := func(path string, major, minor int64) oci.LinuxDevice {
		mode := os.FileMode(0o666)
		return oci.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor, FileMode: &mode}
	}
	for _, test := range []struct {
		name, policy string
		privileged   bool
		random, fuse string // writing to a node that the lists let be read, and using /dev/fuse
		refused      string
	}{
		{"by the engine", "", false, "ok", "-", ""},
		{"one that gives away the host", "", false, "", "", "allow_devices: [/dev/fuse]"},
		{"named", "filesystem: {allow_devices: [/dev/fuse]}\n", false, "ok", "ok", ""},
		{"all of them", "", true, "ok", "EPERM", ""}, // the first is each container's
	} {
		t.Run(test.name, func(t *testing.T) {
			each := each
			if test.refused != "" {
				each = func(t *testing.T, prepare func(*box), _ func(*testing.T, *box, *talk)) {
					b := newBox(t)
					prepare(b)
					if k, got := b.create(); got.code == 0 || !strings.Contains(got.stderr, test.refused) || !k.silent() {
						t.Errorf("create: %s", got)
					}
				}
			}
			each(t, func(b *box) {
				b.spec.Linux.Devices = []oci.LinuxDevice{device("/dev/random", 1, 8)}
				if test.fuse != "-" {
					if _, err := os.Stat("/dev/fuse"); test.fuse == "ok" && err != nil {
						lacking(t, "there is no /dev/fuse: %v", err)
					}
					b.spec.Linux.Devices = append(b.spec.Linux.Devices, device("/dev/fuse", 10, 229))
				}
				rule := oci.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
				if !test.privileged {
					one, eight := int64(1), int64(8)
					rule = oci.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &one, Minor: &eight, Access: "rwm"}
					ten, fuse := int64(10), int64(229)
					b.spec.Linux.Resources.Devices = append(b.spec.Linux.Resources.Devices, oci.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &ten, Minor: &fuse, Access: "rwm"})
				}
				b.spec.Linux.Resources.Devices = append(b.spec.Linux.Resources.Devices, rule)
				b.policy(test.policy + "egress: {rules: []}\n")
			}, func(t *testing.T, b *box, k *talk) {
				k.want(test.random, "write /dev/random")
				if test.fuse != "-" {
					want := test.fuse
					if st, err := os.Stat("/dev/fuse"); len(b.spec.Linux.UIDMappings) > 0 && err == nil && st.Mode()&6 != 6 {
						want = "EACCES" // there it is the host's own node, with its mode
					}
					k.want(want, "use /dev/fuse")
				}
				k.want("EACCES", "mkdir /dev/dri2")
			})
		})
	}
}
