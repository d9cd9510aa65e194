package world

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
)

// Whoever stands in the uplink reaches the world's hosts by name, over TLS.
func TestWorld(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run as root")
		}
		t.Skip("needs root to make network namespaces")
	}
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.ServeHTTPS("api.good.example", http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { io.WriteString(out, "hello") })); err != nil {
		t.Fatal(err)
	}
	packets := make(chan []byte, 1000)
	if err := w.Capture(func(p []byte) { packets <- p }); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.CA())
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
		return dialIn(w, network, netip.AddrPortFrom(Nameserver, 53))
	}}
	addrs, err := resolver.LookupNetIP(t.Context(), "ip4", "API.good.example")
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return dialIn(w, "tcp", netip.AddrPortFrom(addrs[0], 443))
		}}}
	got, err := client.Get("https://api.good.example/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(got.Body)
	got.Body.Close()
	if string(body) != "hello" {
		t.Errorf("the server said %q", body)
	}
	if q := w.Questions(); len(q) == 0 || q[0] != "api.good.example" {
		t.Errorf("questions %q", q)
	}
	if p := <-packets; len(p) < 20 {
		t.Errorf("captured %x", p)
	}
}

func dialIn(w *World, network string, to netip.AddrPort) (c net.Conn, err error) {
	err = in(w.uplink, func() error {
		c, err = net.Dial(network, to.String())
		return err
	})
	return c, err
}
