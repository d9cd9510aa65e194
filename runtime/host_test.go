package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// Of a hosts file counts what names something outside of the container.
func TestParseHosts(t *testing.T) {
	const file = `127.0.0.1	localhost
::1	localhost ip6-localhost
fe00::	ip6-localnet
ff02::1	ip6-allnodes
172.17.0.1	host.docker.internal Gateway.Local # by --add-host
10.0.0.7
nonsense	db.local
169.254.169.254 metadata.local
fe80::1%eth0 zone.local
fd00::7	db.local
172.17.0.2	0123456789ab
10.0.0.9 .. not_a_host!
`
	want := "[{fe00:: [ip6-localnet]} {172.17.0.1 [host.docker.internal gateway.local]} {fd00::7 [db.local]}]"
	if got := fmt.Sprint(parseHosts(strings.NewReader(file), "0123456789ab")); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := parseHosts(strings.NewReader(strings.Repeat("10.0.0.1 a.local\n", 2*maxHosts)), ""); len(got) != maxHosts {
		t.Errorf("%d lines count", len(got))
	}
}

// Who answers for names is the engine's or the operator's to say: a file that
// the container could have written by another name is not believed.
func TestProgramsNameNoServers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"resolv.conf", "hosts"} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte("nameserver 192.0.2.1\n192.0.2.2 db.local\n"), 0o644))
	}
	mounts := func(volume ...string) *oci.Spec {
		spec := &oci.Spec{}
		for _, name := range []string{"resolv.conf", "hosts"} {
			spec.Mounts = append(spec.Mounts, oci.Mount{Type: "bind", Source: filepath.Join(dir, name), Destination: "/etc/" + name, Options: []string{"rbind", "ro"}})
		}
		spec.Mounts = append(spec.Mounts, oci.Mount{Type: "bind", Source: dir, Destination: "/work", Options: volume})
		return spec
	}
	for _, test := range []struct {
		name    string
		spec    *oci.Spec
		counted int
	}{
		{"in a volume that is read-only", mounts("rbind", "ro"), 1},
		{"in one that may be written", mounts("rbind", "rw"), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			servers, _ := resolvers(test.spec)
			if len(servers) != test.counted || len(hosts(test.spec)) != test.counted {
				t.Errorf("servers %v, hosts %v", servers, hosts(test.spec))
			}
		})
	}
}

// A stub that answers on loopback is replaced by the servers behind it, as far as
// they are known; servers that the host asks itself are not.
func TestHostResolvers(t *testing.T) {
	for _, test := range []struct{ name, etc, behind, want string }{
		{"no stub", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n", "", "[192.0.2.1 2001:db8::1]"},
		{"systemd-resolved's", "nameserver 127.0.0.53\noptions edns0 trust-ad\n", "nameserver 192.0.2.7\n", "[192.0.2.7]"},
		{"one that was stopped, and left its file", "nameserver 192.0.2.1\n", "nameserver 192.0.2.7\n", "[192.0.2.1]"},
		{"another program's", "nameserver 127.0.0.1\n", "", "[127.0.0.1]"},
		{"one without servers", "nameserver 127.0.0.53\n", "# none yet\n", "[127.0.0.53]"},
		{"what is no address", "nameserver dns.example\nnameserver\n; nameserver 192.0.2.3\nnameserver 192.0.2.2 # ours\n", "", "[192.0.2.2]"},
		{"nothing", "", "", "[]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			etc, behind := filepath.Join(dir, "etc"), filepath.Join(dir, "behind")
			check(t, os.WriteFile(etc, []byte(test.etc), 0o644))
			if test.behind != "" {
				check(t, os.WriteFile(behind, []byte(test.behind), 0o644))
			}
			if got := fmt.Sprint(hostResolvers(etc, behind)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// FuzzParseHosts: whatever the file is, what it names is a name, and never the
// container itself nor loopback.
func FuzzParseHosts(f *testing.F) {
	f.Add("172.17.0.1 host.docker.internal\n", "self")
	f.Fuzz(func(t *testing.T, text, self string) {
		for _, h := range parseHosts(strings.NewReader(text), self) {
			if !h.Addr.IsValid() || h.Addr.IsLoopback() || len(h.Names) == 0 {
				t.Errorf("%q gives %v", text, h)
			}
			for _, name := range h.Names {
				if name == "" || strings.ContainsAny(name, " \t\n") {
					t.Errorf("%q gives the name %q", text, name)
				}
			}
		}
	})
}
