package policy

import (
	"path"
	"reflect"
	"strings"
	"testing"
)

// TestDefaultSource: the text that an operator starts from means what is in
// force where there is no text.
func TestDefaultSource(t *testing.T) {
	written, err := ParseReload("", DefaultSource())
	if err != nil {
		t.Fatal(err)
	}
	built := Default()
	if got, want := written.meaning(), built.meaning(); !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
	if written.Digest != built.Digest {
		t.Errorf("digests %s and %s", written.Digest, built.Digest)
	}
}

// TestDefaultPromise: the lists keep what the README promises of every
// sandbox, and everything that they grant is clean, optional and has a reason.
func TestDefaultPromise(t *testing.T) {
	p := Default()
	for _, writable := range []string{"/sandbox", "/tmp"} {
		if !has(p.Filesystem.ReadWrite, writable) {
			t.Errorf("%s is not writable", writable)
		}
	}
	hidden := []string{"/", "/root", "/home", "/mnt", "/media", "/boot", "/run", "/var", "/var/run", "/sys", "/dev"}
	for _, granted := range append(p.Filesystem.ReadOnly, p.Filesystem.ReadWrite...) {
		if !granted.Optional || path.Clean(granted.Name) != granted.Name {
			t.Errorf("%+v must be optional and clean", granted)
		}
		for _, h := range hidden {
			if granted.Name == h {
				t.Errorf("%s is granted", h)
			}
		}
	}
	for _, list := range [][]Granted{EssentialReadOnly, EssentialReadWrite, DefaultReadOnly, DefaultReadWrite, DefaultEgress} {
		for _, g := range list {
			if g.Why == "" || strings.ContainsAny(g.Why, "\n") {
				t.Errorf("%s has the reason %q", g.Name, g.Why)
			}
		}
	}
	for _, host := range []string{"api.anthropic.com", "integrate.api.nvidia.com", "github.com", "api.github.com", "clawhub.com", "openclaw.ai", "api.telegram.org"} {
		if !p.Decide(host, 443, Owner{}, now).Allow || p.Decide(host, 80, Owner{}, now).Allow {
			t.Errorf("%s is not allowed, or on more than port 443", host)
		}
	}
	if p.Unconfined || p.Landlock.BestEffort || p.Network.Uplink != UplinkAuto {
		t.Errorf("the default is weak: %+v", p)
	}
}

// TestNothingIsShared: who changes one policy does not change the next.
func TestNothingIsShared(t *testing.T) {
	p := Default()
	p.Egress.Rules[0].Host = "evil.example"
	p.Filesystem.ReadOnly[0].Name = "/"
	if got := Default(); got.Egress.Rules[0].Host == "evil.example" || got.Filesystem.ReadOnly[0].Name == "/" {
		t.Error("the built-in lists were changed")
	}
}

// TestBuiltInLists: what the built-in lists hold, written out again by hand. One
// name more is a grant that somebody must have meant; one less breaks images.
func TestBuiltInLists(t *testing.T) {
	for _, list := range []struct {
		name string
		is   []Granted
		want string
	}{
		{"EssentialReadOnly", EssentialReadOnly, "/proc /dev/random /dev/urandom"},
		{"EssentialReadWrite", EssentialReadWrite, "/dev/null /dev/zero /dev/full /dev/tty /dev/pts /dev/ptmx /dev/shm"},
		{"DefaultReadOnly", DefaultReadOnly, `/usr /bin /sbin /lib /lib32 /lib64 /libx32 /opt /srv /app /nix /etc /var/lib/dpkg /var/lib/rpm /var/log
			/sys/fs/cgroup /sys/devices/system/cpu /sys/kernel/mm/transparent_hugepage`},
		{"DefaultReadWrite", DefaultReadWrite, "/sandbox /tmp /var/tmp /dev/mqueue /dev/console"},
		{"DefaultEgress", DefaultEgress, "api.anthropic.com integrate.api.nvidia.com github.com api.github.com clawhub.com openclaw.ai api.telegram.org"},
	} {
		var names []string
		for _, g := range list.is {
			names = append(names, g.Name)
		}
		if got, want := strings.Join(names, " "), strings.Join(strings.Fields(list.want), " "); got != want {
			t.Errorf("%s is\n  %s\nwant\n  %s", list.name, got, want)
		}
	}
}
