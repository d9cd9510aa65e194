package hooks

import "testing"

// Whatever a program dials, it meets the gateway, which sees what was dialed.
func TestSealSteersEverythingToTheListeners(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	w.serve(w.inner, "tcp", "0.0.0.0:8080", "mine")
	w.serve(w.inner, "tcp", "[fd31:1::5]:8081", "mine")
	w.serve(w.inner, "tcp", "[::1]:8082", "mine")
	w.serve(w.inner, "udp", "172.31.1.5:8083", "mine")
	w.serve(w.host, "tcp", "203.0.113.9:80", "host")
	w.serve(w.host, "udp", "203.0.113.9:80", "host")

	for _, c := range []struct{ proto, addr, outcome string }{
		// TCP: to synthetic, foreign, neighbouring and forbidden addresses.
		{"tcp", "198.18.3.7:443", "gateway 198.18.3.7:443 from 198.18.0.2"},
		{"tcp", "203.0.113.9:80", "gateway 203.0.113.9:80 from 198.18.0.2"},
		{"tcp", "172.31.1.1:81", "gateway 172.31.1.1:81 from 198.18.0.2"},
		{"tcp", "169.254.169.254:80", "gateway 169.254.169.254:80 from 198.18.0.2"},
		{"tcp", "198.18.0.1:22", "gateway 198.18.0.1:22 from 198.18.0.1"},
		{"tcp", "198.18.0.1:15001", "gateway 198.18.0.1:15001 from 198.18.0.1"},
		{"tcp", "8.8.8.8:53", "gateway 8.8.8.8:53 from 198.18.0.2"},
		{"tcp", "[2001:db8::9]:80", "gateway [2001:db8::9]:80 from fd6e:656d:6f::2"},
		{"tcp", "[fd31:1::1]:81", "gateway [fd31:1::1]:81 from fd6e:656d:6f::2"},

		// DNS: whoever is asked, ours answers.
		{"udp", "8.8.8.8:53", "dns from 198.18.0.2"},
		{"udp", "172.31.1.1:53", "dns from 198.18.0.2"},
		{"udp", "198.18.0.1:53", "dns from 198.18.0.1"},
		{"udp", "127.0.0.11:53", "dns from 127.0.0.1"},
		{"udp", "[2001:4860:4860::8888]:53", "dns from fd6e:656d:6f::2"},
		{"tcp", "198.18.0.1:53", "dns 198.18.0.1:53 from 198.18.0.1"},
		{"tcp", "127.0.0.11:53", "dns 198.18.0.1:53 from 127.0.0.1"},

		// Other datagrams are refused at once, not lost.
		{"udp", "203.0.113.9:80", "refused"},
		{"udp", "172.31.1.1:123", "refused"},
		{"udp", "[2001:db8::9]:443", "refused"},
		{"udp", "127.0.0.11:40000", "not permitted"},
		{"tcp", "127.0.0.11:40000", "refused"},

		// The container's own servers are its own affair.
		{"tcp", "127.0.0.1:8080", "mine 127.0.0.1:8080 from 127.0.0.1"},
		{"tcp", "172.31.1.5:8080", "mine 172.31.1.5:8080 from 172.31.1.5"},
		{"tcp", "[fd31:1::5]:8081", "mine [fd31:1::5]:8081 from fd31:1::5"},
		{"tcp", "[::1]:8082", "mine [::1]:8082 from ::1"},
		{"udp", "172.31.1.5:8083", "mine from 172.31.1.5"},
		{"tcp", "172.31.1.5:9", "refused"},
		{"udp", "172.31.1.5:9", "refused"},
	} {
		if got := w.ask(w.inner, c.proto, c.addr); got != c.outcome {
			t.Errorf("%s %s: %s; want: %s", c.proto, c.addr, got, c.outcome)
		}
	}
}
