package worker

import (
	"io"
	"net"
	"net/netip"
	"testing"
)

// BenchmarkShortConnections opens a connection, sends a little, gets it back
// and closes: what a decision with both of its records costs.
func BenchmarkShortConnections(b *testing.B) {
	sb := newSandbox(b, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	go func() {
		for range sb.records {
		}
	}()
	go func() {
		for range sb.dialed {
		}
	}()
	dst := netip.AddrPortFrom(sb.lookup("db.example.com"), 5432)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 5)
		for pb.Next() {
			c := sb.dialTo(dst)
			io.WriteString(c, "hello")
			c.CloseWrite()
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Error(err)
			}
			io.ReadAll(c)
			c.Close()
		}
	})
}

// BenchmarkOneStream moves bytes through one connection.
func BenchmarkOneStream(b *testing.B) {
	sb := newSandbox(b, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	c := sb.dialTo(netip.AddrPortFrom(sb.lookup("db.example.com"), 5432))
	defer c.Close()
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
