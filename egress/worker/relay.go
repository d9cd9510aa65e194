package worker

import (
	"cmp"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// buffers are of copySize bytes.
var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// source reads a connection and holds a buffer only while there are bytes in
// it: a thousand silent connections hold none.
type source struct {
	c    *net.TCPConn
	raw  syscall.RawConn
	own  *[copySize]byte // from the pool; nil: none held
	buf  []byte          // what was read and not released
	err  error
	read func(fd uintptr) bool
}

func newSource(c *net.TCPConn) (*source, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &source{c: c, raw: raw}
	s.read = s.readOnce
	return s, nil
}

// more waits for bytes and adds them to those held, up to limit in all. It
// returns all that are held; they are good until release. The error is io.EOF
// at the end.
func (s *source) more(limit int) ([]byte, error) {
	if len(s.buf) >= limit {
		return s.buf, io.ErrShortBuffer
	}
	s.err = nil
	if err := s.raw.Read(s.read); err != nil {
		return s.buf, err
	}
	return s.buf, s.err
}

// readOnce reads once; false asks to be called again when there is something
// to read.
func (s *source) readOnce(fd uintptr) bool {
	had := s.own != nil
	if !had {
		s.own = buffers.Get().(*[copySize]byte)
		s.buf = s.own[:0]
	}
	if len(s.buf) == cap(s.buf) { // the rare long ClientHello
		s.buf = append(make([]byte, 0, 2*cap(s.buf)), s.buf...)
	}
	n, err := unix.Read(int(fd), s.buf[len(s.buf):cap(s.buf)])
	for err == unix.EINTR {
		n, err = unix.Read(int(fd), s.buf[len(s.buf):cap(s.buf)])
	}
	switch {
	case err == unix.EAGAIN:
		if !had {
			s.release()
		}
		return false
	case err != nil:
		s.err = err
	case n == 0:
		s.err = io.EOF
	default:
		s.buf = s.buf[:len(s.buf)+n]
	}
	return true
}

// glance adds to the bytes held those that have come meanwhile, and waits for
// none. It returns an end that follows them.
func (s *source) glance() error {
	s.err = nil
	if len(s.buf) < cap(s.buf) {
		_ = s.raw.Control(func(fd uintptr) { s.readOnce(fd) }) // what is closed shows when it is read
	}
	return s.err
}

// skip forgets the first n bytes of those held.
func (s *source) skip(n int) {
	if s.buf = s.buf[n:]; len(s.buf) == 0 {
		s.release()
	}
}

// release gives the buffer back.
func (s *source) release() {
	if s.own != nil {
		buffers.Put(s.own)
	}
	s.own, s.buf = nil, nil
}

// pass copies what s still has to say to dst, until its end, and tells dst of
// the end. It returns how many bytes dst took. Where s was reset, both are.
func (f *flow) pass(dst *net.TCPConn, s *source) int64 {
	defer s.release()
	var n int64
	to := f.way(dst)
	for most := int64(spliceAfter); ; most = math.MaxInt64 {
		for n < most {
			if len(s.buf) == 0 {
				if _, err := s.more(copySize); err != nil {
					f.ended(dst, s.c, err)
					return n
				}
			}
			var end error
			if n == 0 && dst == f.c { // a short answer is often all of them
				end = s.glance()
			}
			m, err := 0, error(nil)
			if end == io.EOF {
				m, err = writeBeforeEnd(dst, s.buf)
			} else {
				m, err = to.Write(s.buf)
			}
			s.release()
			n += int64(m)
			if err = cmp.Or(err, end); err != nil {
				f.ended(dst, s.c, err)
				return n
			}
		}
		m, bounded, err := splice(to, s.c)
		n += m
		if bounded {
			continue // through our hands from here on
		}
		if err == nil {
			err = io.EOF
		}
		f.ended(dst, s.c, err)
		return n
	}
}

// writeBeforeEnd writes what the end of the connection follows: both go in one
// packet, and wake its reader up once (send(2), MSG_MORE).
func writeBeforeEnd(c *net.TCPConn, b []byte) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	_ = raw.Control(func(fd uintptr) {
		n, _ = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_MORE|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if n == len(b) {
		return n, nil
	}
	m, err := c.Write(b[n:]) // there was no room, or what failed fails again
	return n + m, err
}

// splice has the kernel move the bytes of src to its end, or until there is a
// bound for them.
func splice(to carrier, src *net.TCPConn) (n int64, bounded bool, err error) {
	if m, ok := to.(*meter); ok {
		return m.splice(src)
	}
	n, err = to.ReadFrom(src)
	return n, false, err
}

// ended carries the end of one direction on. The end of src is told to dst; a
// reset of src is one of dst. If it is dst that is gone, what it still had to
// say, such as an answer before its reset, passes the other way: nothing is
// done here.
func (f *flow) ended(dst, src *net.TCPConn, err error) {
	switch {
	case !errors.Is(err, io.EOF):
		if isReset(src) {
			f.abort()
		}
	case dst != f.c || !f.last.Load():
		dst.CloseWrite()
	}
}

// isReset tells whether a connection is gone: reset, timed out or closed.
func isReset(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	raw.Control(func(fd uintptr) { gone = isGone(fd) })
	return gone
}

func isGone(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == tcpClose
}

// States of the kernel's include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpClose       = 7
)

// passing tells whether an error of accept(2) goes away by itself.
func passing(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR, unix.EAGAIN, unix.EPERM, unix.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reset ends a connection with an RST instead of a FIN.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
