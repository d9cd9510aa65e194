package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allDevices is what --privileged says of devices, with one of those that it
// brings, which nobody chose.
func (b *box) allDevices() {
	mode := os.FileMode(0o666)
	b.spec.Linux.Devices = []oci.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode}, {Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode}}
	b.cgroupRule(oci.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
}

func (b *box) cgroupRule(d oci.LinuxDeviceCgroup) {
	b.spec.Linux.Resources.Devices = append(b.spec.Linux.Resources.Devices, d)
}

// To Landlock a device node is a file like others, and an image may bring its
// own: the device must be out of reach all the same.
func TestAttackByNodes(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		lacking(t, "there is no /dev/fuse: %v", err)
	}
	ten, fuse := int64(10), int64(229)
	for _, test := range []struct {
		name    string
		prepare func(*box)
		policy  string
		want    string
	}{
		{"an engine that says nothing", func(b *box) { b.spec.Linux.Resources = nil }, "", "EPERM"},
		{"privileged", (*box).allDevices, "", "EPERM"},
		{"privileged, by a rule for a kind", func(b *box) {
			b.cgroupRule(oci.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "wr"})
		}, "", "EPERM"},
		{"privileged, by a rule to make nodes", func(b *box) {
			b.cgroupRule(oci.LinuxDeviceCgroup{Allow: true, Type: "a", Major: &ten, Access: "m"})
		}, "", "EPERM"},
		{"a rule for many", func(b *box) {
			b.cgroupRule(oci.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &ten, Access: "rwm"})
		}, "", "EPERM"},
		{"a rule for it", func(b *box) {
			b.cgroupRule(oci.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &ten, Minor: &fuse, Access: "r"})
		}, "", "EPERM"},
		{"named by the policy", (*box).allDevices, "filesystem: {allow_devices: [/dev/fuse]}\n", "ok"}, // the control
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			for _, name := range []string{"sandbox/node", "opt/node"} {
				at := filepath.Join(b.rootfs(), name)
				b.must(os.MkdirAll(filepath.Dir(at), 0o777))
				b.must(unix.Mknod(at, unix.S_IFCHR, int(unix.Mkdev(10, 229))))
				b.must(os.Chmod(at, 0o666))
			}
			test.prepare(b)
			b.policy(test.policy + "egress: {rules: []}\n")
			main := b.up()
			for _, k := range []*talk{main, b.exec()} {
				k.want(test.want, "open-file /opt/node 0")
				k.want(test.want, "open-file /sandbox/node 2")
				k.want("ok", "open-file /dev/null 2")
			}
		})
	}
}

// What an image, or a program that was in a container before, could have left so
// that the next create gives more than was meant: nothing is made of it.
func TestAttackByWhatWasLeft(t *testing.T) {
	volume := func(b *box, dest string, options ...string) {
		b.mkdir("v", "host")
		b.write("host/secret", "of the host")
		b.must(os.Chmod(b.path("v"), 0o777))
		b.mount(oci.Mount{Destination: dest, Type: "bind", Source: b.path("v"), Options: append(options, "rbind")})
	}
	link := func(b *box, to, name string) {
		b.t.Helper()
		_ = os.Remove(filepath.Join(b.rootfs(), name))
		b.must(os.Symlink(to, filepath.Join(b.rootfs(), name)))
	}
	for _, test := range []struct {
		name    string
		prepare func(*box)
		policy  string
		want    string // of stderr; empty: it runs
	}{
		{"devices where the image leads them", func(b *box) {
			b.allDevices()
			link(b, "/sandbox", "dev")
			b.must(os.MkdirAll(filepath.Join(b.rootfs(), "sandbox"), 0o755))
		}, "", "a symbolic link of the image leads /dev"},
		{"a volume where the image leads it", func(b *box) {
			volume(b, "/data")
			link(b, "/dev", "data")
		}, "", "a symbolic link leads from there to /dev"},

		{"a volume of its own in a volume", func(b *box) {
			volume(b, "/data")
			b.write("v/conf", "of the volume")
			b.mount(oci.Mount{Destination: "/etc/app", Type: "bind", Source: b.path("v/conf"), Options: []string{"rbind", "ro"}})
		}, "", ""},
		{"a link to the host's files in its place", func(b *box) {
			volume(b, "/data")
			b.must(os.Symlink(b.path("host/secret"), b.path("v/conf")))
			b.mount(oci.Mount{Destination: "/etc/app", Type: "bind", Source: b.path("v/conf"), Options: []string{"rbind", "ro"}})
		}, "", "which programs may write"},
		{"a link to the host's files above it", func(b *box) {
			volume(b, "/data")
			b.must(os.Symlink(b.path("host"), b.path("v/dir")))
			b.mount(oci.Mount{Destination: "/etc/app", Type: "bind", Source: b.path("v/dir/secret"), Options: []string{"rbind", "ro"}})
		}, "", "which programs may write"},
		{"a link of the host's that leads to the volume", func(b *box) {
			volume(b, "/data")
			b.write("v/conf", "of the volume")
			b.must(os.Symlink(b.path("v"), b.path("alias")))
			b.spec.Mounts[len(b.spec.Mounts)-1].Source = b.path("alias")
			b.mount(oci.Mount{Destination: "/etc/app", Type: "bind", Source: b.path("alias/conf"), Options: []string{"rbind", "ro"}})
		}, "", ""},

		{"what is hidden, before it is there", func(b *box) { volume(b, "/data", "ro") },
			"filesystem: {deny: [/data/.env]}\n", "whoever writes the volume at /data could make it"},
		{"a directory that is hidden, before it is there", func(b *box) { volume(b, "/data", "ro") },
			"filesystem: {deny: [/data/a/keys/]}\n", "whoever writes the volume at /data could make it"},
		{"what is hidden, before it is there, in a read-only place", func(b *box) {
			volume(b, "/data")
			b.mkdir("v/a")
		}, "filesystem: {read_only: [/data/a], deny: [/data/a/.env]}\n", "whoever writes the volume at /data could make it"},
		{"what is hidden, and is not there, in what is hidden", func(b *box) {
			volume(b, "/data", "ro")
			b.mkdir("v/a")
		}, "filesystem: {deny: [/data/a, /data/a/.env]}\n", ""},
		{"what is hidden, and is not there, in the image", func(*box) {},
			"filesystem: {deny: [/opt/app/.env]}\n", ""},

		{"programs written by another name", func(b *box) {
			volume(b, "/data")
			b.mkdir("v/tools")
			b.mount(oci.Mount{Destination: "/tools", Type: "bind", Source: b.path("v/tools"), Options: []string{"rbind", "ro"}})
		}, "filesystem: {write_execute: deny}\n", "shows the same files at /"},
		{"two names that may both be written", func(b *box) {
			volume(b, "/data")
			b.mkdir("v/tools")
			b.mount(oci.Mount{Destination: "/tools", Type: "bind", Source: b.path("v/tools"), Options: []string{"rbind"}})
		}, "filesystem: {write_execute: deny}\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			test.prepare(b)
			b.policy(test.policy + "egress: {rules: []}\n")
			k, got := b.create()
			switch {
			case test.want == "" && got.code != 0:
				t.Errorf("it is not made: %s", got)
			case test.want != "" && (got.code == 0 || !strings.Contains(got.stderr, test.want) || !k.silent()):
				t.Errorf("%s\nwant it refused: %s", got, test.want)
			}
		})
	}
}
