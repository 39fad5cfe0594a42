/* Fused multiply-adds of one core with nothing in their way: 24 independent sums that stay in
 * vector registers. Compiled for the machine at hand by roofline.py, once for each REAL. */
typedef REAL vector __attribute__((vector_size(WIDTH)));
enum { SUMS = 24, LANES = sizeof(vector) / sizeof(REAL) };

/* Returns a value that depends on every sum; 2 * 24 * LANES flops in each of n turns. */
double run(long n) {
    vector sum[SUMS], a, b;
    for (int l = 0; l < LANES; ++l) {
        a[l] = (REAL)0.999999;
        b[l] = (REAL)1e-6;
    }
    for (int k = 0; k < SUMS; ++k) sum[k] = b * (REAL)k;
    for (long t = 0; t < n; ++t) {
        for (int k = 0; k < SUMS; ++k) sum[k] = sum[k] * a + b;
    }
    double total = 0;
    for (int k = 0; k < SUMS; ++k) {
        for (int l = 0; l < LANES; ++l) total += sum[k][l];
    }
    return total;
}

int lanes(void) { return LANES; }
